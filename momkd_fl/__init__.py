"""momkd-fl: federated momentum memory knowledge distillation for computational pathology."""

__version__ = "0.1.0"
