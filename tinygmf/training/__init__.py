"""Training: recipes, data sets, the compiled step and the loop around it."""

from tinygmf.training.data import DataError, Dataset
from tinygmf.training.digits import digit_picture, digits, digits_split
from tinygmf.training.folders import folder_pictures
from tinygmf.training.loop import EpochReport, Trainer, TrainingError
from tinygmf.training.recipe import RECIPES, Recipe
from tinygmf.training.shapes import shapes

__all__ = [
    "RECIPES",
    "DataError",
    "Dataset",
    "EpochReport",
    "Recipe",
    "Trainer",
    "TrainingError",
    "digit_picture",
    "digits",
    "digits_split",
    "folder_pictures",
    "shapes",
]
