"""What befalls one rank during training -> how soon the others end, and whom they name."""
