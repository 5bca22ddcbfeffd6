"""How fast paged attention is, beside the device's own memory and beside its peers: `python -m paged_kernels.bench`.

    shapes    what is measured
    subjects  our kernels and their peers, each as a call on one shape
    timing    the clock, and what a large streaming read reaches
    exact     whether a result is right
    record    rows, the JSON file, the table
"""
