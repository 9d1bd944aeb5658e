"""How much accuracy a trained network loses by conversion, calibrated, without and with a short fine-tuning."""
