from .comparison.runner import compare as compare
from .errors import EvalError as EvalError
from .report.run import Run as Run
