"""What makes encoding fast: the network's weights laid out once for a precision and a device, and never trained.

The network knows nothing of it. encoder.py has the forward pass, products.py and int8.py the matrix products,
calibration.py finds what int8 rounds by.
"""
