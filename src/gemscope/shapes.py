"""One letter per axis, and the tensor types that signatures use. Checked by beartype while the tests run.

    B  rows (prompts, packed pieces of a corpus)     T  positions in a row      N  tokens, rows and positions flattened
    D  the width that an SAE reads (d_in)            O  the width it writes     F  features (d_sae)
    S  sites side by side
    K  the strongest few                             Z  non-zero entries

A name in front of a dtype's brackets is the whole story: `Float[Tensor, "B T D"]`. Only the axis letters live here.
"""

from jaxtyping import Bool, Float, Int

__all__ = ["Bool", "Float", "Int"]
