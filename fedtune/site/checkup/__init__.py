"""The doctor of a site's folder: is this site ready for its federation, and if not, what has to be done.

Read in this order::

    making                            a check, whatever happens in it, becomes findings
    material                          keys, certificates, roster and policy in the folder
    route       reaching              how Flower's SuperNode would reach the server, and where that ends
    certificate answer                what the server shows, its clock, and whether it is a SuperLink
    model       rows      agreement   the base model, the data, and the policy against a configuration
    run                               all checks in their order, each made only if it can be
"""
