"""The checkpoint store: boxes of logical fp32 tensors in safetensors files. README.md in this folder is the format."""

from growth.evaluate.recipe import KINDS
from pretrain.checkpoint.checkpointer import Checkpointer, SaveReport
from pretrain.checkpoint.find import Found, check, find, restore, step_folder, verify_all
from pretrain.checkpoint.manifest import AVERAGE, STORED, CorruptCheckpoint, FileRecord, Manifest, ManifestFields
from pretrain.checkpoint.model import model_of
from pretrain.checkpoint.places import MEMORY
from pretrain.checkpoint.reader import Reader
from pretrain.checkpoint.stream import write_checkpoint
from pretrain.checkpoint.writer import Source, Writer
from pretrain.runtime.files import Lock, is_done, mark_done

__all__ = [
    "AVERAGE",
    "KINDS",
    "MEMORY",
    "STORED",
    "Checkpointer",
    "CorruptCheckpoint",
    "FileRecord",
    "Found",
    "Lock",
    "Manifest",
    "ManifestFields",
    "Reader",
    "SaveReport",
    "Source",
    "Writer",
    "check",
    "find",
    "is_done",
    "mark_done",
    "model_of",
    "restore",
    "step_folder",
    "verify_all",
    "write_checkpoint",
]
