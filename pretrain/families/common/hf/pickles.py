"""Weights that are pickles, which are never loaded."""

from pathlib import Path

from pretrain.errors import UserError


def refuse_pickles(folder: Path, key: str = "") -> None:
    """Raises UserError where the weights of a folder, which has no safetensors, are pickles. key: its first words."""
    if pickles := sorted([*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.pth")]):
        raise UserError(
            f"{key}{pickles[0]}: a pickle can run any program when it is loaded, so it is not. Convert the folder "
            "where you trust it: save_pretrained(NEW) of the model in transformers writes safetensors"
        )
