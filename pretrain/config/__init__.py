"""What a curriculum is. Its keys are in keys.py and, by section, in train_keys.py, grow_keys.py and distill_keys.py;
curriculum.py reads a file, checks.py says what does not fit."""

from pretrain.config.curriculum import RESUMABLE, Curriculum, compare_for_resume, load, stage_from, to_yaml
from pretrain.config.distill_keys import Distill
from pretrain.config.grow_keys import LEARNED, Grow, Learn, Patch, Trial
from pretrain.config.keys import Checkpoint, Data, Eval, Guard, Log, Model, Parallel, Stage
from pretrain.config.train_keys import Average, LayerDrop, Lora, Plateau, Train

__all__ = [
    "LEARNED",
    "RESUMABLE",
    "Average",
    "Checkpoint",
    "Curriculum",
    "Data",
    "Distill",
    "Eval",
    "Grow",
    "Guard",
    "LayerDrop",
    "Learn",
    "Log",
    "Lora",
    "Model",
    "Parallel",
    "Patch",
    "Plateau",
    "Stage",
    "Train",
    "Trial",
    "compare_for_resume",
    "load",
    "stage_from",
    "to_yaml",
]
