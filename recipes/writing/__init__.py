"""How the recipes write down what they found."""
