"""Networks with trained weights, converted, calibrated and distilled: error against speed."""
