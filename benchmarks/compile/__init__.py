"""How long a conversion takes and how much memory it needs, from 100 to 10,000 layers."""
