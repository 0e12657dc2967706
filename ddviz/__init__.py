"""Data-dependent randomized smoothing: one noise level per image, certified and seen.

    image -> sigma_x -> counts -> certificate -> record -> memory -> table -> figure

Each stage is one module and takes the value of the one before. Figures live in `ddviz.plots`, which alone needs plotly.
"""

from ddviz import datasets, models
from ddviz.analysis import average_certified_radius, certified_accuracy, envelope
from ddviz.budget import SampleBudget
from ddviz.certify import Certificate, certify, certify_many, predict
from ddviz.config import RunConfig
from ddviz.errors import InputError, ResourceError
from ddviz.experiment import Experiment, Run, run
from ddviz.memory import Answer, Memory, replay
from ddviz.networks import FromProbabilities, Normalize
from ddviz.objectives import OBJECTIVES, Batch, GaussianAugmentation, Macer, SmoothAdv
from ddviz.recipe import Recipe
from ddviz.records import ABSTAIN, Record, read_records
from ddviz.sampling import Sampler
from ddviz.sigma import SOLVERS, Ascent, FastAscent, Grid, Halving, SigmaPath
from ddviz.smoothing import SMOOTHINGS, Gaussian, Uniform
from ddviz.training import Training, train

__version__ = "0.1.0"

__all__ = [
    "ABSTAIN",
    "OBJECTIVES",
    "SMOOTHINGS",
    "SOLVERS",
    "Answer",
    "Ascent",
    "Batch",
    "Certificate",
    "Experiment",
    "FastAscent",
    "FromProbabilities",
    "Gaussian",
    "GaussianAugmentation",
    "Grid",
    "Halving",
    "InputError",
    "Macer",
    "Memory",
    "Normalize",
    "Recipe",
    "Record",
    "ResourceError",
    "Run",
    "RunConfig",
    "SampleBudget",
    "Sampler",
    "SigmaPath",
    "SmoothAdv",
    "Training",
    "Uniform",
    "average_certified_radius",
    "certified_accuracy",
    "certify",
    "certify_many",
    "datasets",
    "envelope",
    "models",
    "predict",
    "read_records",
    "replay",
    "run",
    "train",
]
