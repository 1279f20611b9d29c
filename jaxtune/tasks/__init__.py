"""Tasks: where conversations come from."""

from jaxtune.tasks.clusters import HoldOut as HoldOut
from jaxtune.tasks.clusters import by_name as by_name
from jaxtune.tasks.clusters import cluster_groups as cluster_groups
from jaxtune.tasks.clusters import hold_out as hold_out
from jaxtune.tasks.clusters import invert as invert
from jaxtune.tasks.ladder import Ladder as Ladder
from jaxtune.tasks.ladder import repeat_ladder as repeat_ladder
from jaxtune.tasks.problems import Problem as Problem
from jaxtune.tasks.problems import ProblemLog as ProblemLog
from jaxtune.tasks.problems import RecordError as RecordError
from jaxtune.tasks.scoring import Scoring as Scoring
from jaxtune.tasks.shapes import Shape as Shape
from jaxtune.tasks.sources.base import RecordSource as RecordSource
from jaxtune.tasks.sources.open import from_array_record as from_array_record
from jaxtune.tasks.sources.open import from_file as from_file
from jaxtune.tasks.sources.open import from_hf_folder as from_hf_folder
from jaxtune.tasks.sources.open import from_hub as from_hub
from jaxtune.tasks.sources.open import from_jsonl as from_jsonl
from jaxtune.tasks.sources.open import from_list as from_list
from jaxtune.tasks.sources.open import from_parquet as from_parquet
from jaxtune.tasks.sources.open import from_tfds as from_tfds
from jaxtune.tasks.task import Task as Task
from jaxtune.tasks.wording import FewShot as FewShot
from jaxtune.tasks.wording import FewShotStyle as FewShotStyle
from jaxtune.tasks.wording import Template as Template
