"""Hugging Face folders: models out of the store, and models of others into it."""

from pretrain import families
from pretrain.errors import UserError
from pretrain.families import FAMILIES
from pretrain.families.common.hf.form import HfForm

__all__ = ["form_of", "forms"]


def forms() -> dict[str, HfForm]:
    """The form in transformers of each family that has one, by the family's name."""
    return {name: family.hf for name, family in FAMILIES.items() if family.hf}


def form_of(name: str) -> HfForm:
    """The form of a checkpoint's family; raises UserError for one that has none."""
    if name not in FAMILIES or not (form := families.of(name).hf):
        raise UserError(f"there is no export of the family {name!r} yet: only of {', '.join(sorted(forms()))}")
    return form
