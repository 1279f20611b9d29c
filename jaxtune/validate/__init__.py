"""Every problem of data files, or (`validate.experiment`) of a config with its data, before a run."""

from jaxtune.validate.printing import print_report as print_report
from jaxtune.validate.report import Report as Report
from jaxtune.validate.validation import refuse_missing as refuse_missing
from jaxtune.validate.validation import validate_files as validate_files
from jaxtune.validate.validation import validate_tasks as validate_tasks
