"""The processes of the model: start them, watch them, talk to them."""
