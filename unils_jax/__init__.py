"""UniLS in JAX: from the two audio tracks of a conversation to facial motion.

Nothing is imported here, so `import unils_jax` costs nothing and initialises no JAX backend:

    from unils_jax.inference.conversations import decode
    from unils_jax.checkpoints.loading import load
"""

__version__ = "0.1.0"
