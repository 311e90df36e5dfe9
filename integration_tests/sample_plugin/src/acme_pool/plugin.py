"""What the package offers; imports nothing heavy."""

from multivae_core.plugins import ComponentSpec, hookimpl

MULTIVAE_API_LEVEL = 1


@hookimpl
def multivae_components():
    """Return one fusion and one model."""
    return [
        ComponentSpec(
            kind="fusions",
            name="log_pool",
            target="acme_pool.model:LogPool",
            config="acme_pool.model:LogPoolConfig",
            summary="Geometric mean of the experts.",
        ),
        ComponentSpec(
            kind="models",
            name="pool_vae",
            target="acme_pool.model:PoolVAE",
            config="acme_pool.model:PoolVAEConfig",
            summary="ELBO with a pool of experts.",
            family="acme",
            reference="Genest & Zidek 1986",
            capabilities=(
                "joint_likelihood",
                "conditional_likelihood",
                "generate",
                "posterior_density",
                "loss_is_bound",
                "row_objective",
                "encodes_any_subset",
            ),
        ),
    ]
