"""What makes encoding fast: the network's weights laid out once for a precision and a device, and never trained.

The network does not use the engine. encoder.py has the forward pass, products.py and int8.py the matrix products, and
calibration.py finds the ranges that int8 rounds by.
"""
