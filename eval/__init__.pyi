from .comparison.runner import compare as compare
from .errors import EvalError as EvalError
from .report.report import Run as Run
