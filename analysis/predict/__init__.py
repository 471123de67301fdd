"""What fitted laws say of a compute budget, a target loss or a model size, from their JSON alone.

from analysis.predict import predict, read
prediction = predict(read(Path("sweeps/quick/analysis/fits.json")), flops=1e15)
"""

from analysis.predict.answers import Answer, Prediction, predict
from analysis.predict.fitted import Approach, CriticalBatch, Fits, parse, read

__all__ = ["Answer", "Approach", "CriticalBatch", "Fits", "Prediction", "parse", "predict", "read"]
