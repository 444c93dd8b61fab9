# The public names of dptrain, each said once: type checkers and editors read this file, and so does `__init__.py`,
# which loads a name at its first use.

from . import detection as detection
from .audit import AuditResult as AuditResult
from .audit import audit_training as audit_training
from .detection.data import DetectionDataset as DetectionDataset
from .detection.data import load_data as load_data
from .detection.evaluate import Metrics as Metrics
from .detection.evaluate import evaluate as evaluate
from .errors import BudgetError as BudgetError
from .errors import ConfigError as ConfigError
from .errors import DataError as DataError
from .errors import DptrainError as DptrainError
from .errors import ModelError as ModelError
from .errors import PrivacyError as PrivacyError
from .errors import SealError as SealError
from .errors import TrackingError as TrackingError
from .gradients import UnitBatch as UnitBatch
from .gradients import check_independence as check_independence
from .gradients import clipped_gradient_sum as clipped_gradient_sum
from .gradients import per_sample_gradients as per_sample_gradients
from .gradients.check_rule import check_layer_rule as check_layer_rule
from .gradients.modules import FrozenBatchNorm2d as FrozenBatchNorm2d
from .gradients.rules import LayerRule as LayerRule
from .gradients.rules import register_layer_rule as register_layer_rule
from .ledger import BudgetLedger as BudgetLedger
from .privacy.clip_rules import ClipRule as ClipRule
from .privacy.clip_rules import FlatClip as FlatClip
from .privacy.clipping import Clipping as Clipping
from .privacy.outside_accountant import Accountant as Accountant
from .privacy.outside_accountant import register_accountant as register_accountant
from .privacy.outside_clip import MakeClipRule as MakeClipRule
from .privacy.outside_clip import register_clip_rule as register_clip_rule
from .privacy.plan import PrivacyPlan as PrivacyPlan
from .privacy.planning import plan_grid as plan_grid
from .privacy.streams import NoiseStream as NoiseStream
from .run.job import TrainResult as TrainResult
from .run.pretraining.run import PretrainResult as PretrainResult
from .run.pretraining.run import pretrain as pretrain
from .run.train import train as train
from .sealing import find_keys as find_keys
from .toolbox.checking import CheckReport as CheckReport
from .toolbox.checking import check as check
from .toolbox.perturbation import evaluate_perturbed as evaluate_perturbed
from .toolbox.perturbation import export_perturbed as export_perturbed
from .toolbox.perturbation import local_epsilon as local_epsilon
from .toolbox.perturbation import needed_level as needed_level
from .toolbox.redaction import redact as redact
from .toolbox.scrubbing import ScrubReport as ScrubReport
from .toolbox.scrubbing import scrub as scrub
from .toolbox.seal import seal as seal
from .toolbox.seal import unseal as unseal
from .training.clipped_sum import ClippedSum as ClippedSum
from .training.journal import StepJournal as StepJournal
from .training.trainer import PrivateTrainer as PrivateTrainer

__version__: str
