"""Secure aggregation: the server learns the sum of the sites' updates, and nothing else.

Bonawitz et al. 2017 (CCS, "Practical Secure Aggregation for Privacy-Preserving Machine Learning"), the
variant for an active server, with the sparse graph of Bell et al. 2020 (CCS, "Secure Single-Server
Aggregation with (Poly)Logarithmic Overhead") above 128 clients. The package is free of any transport:
bytes in, bytes out.

Read in this order::

    problems    canonical   wire        codes and their fixes; one encoding for hashes; a strict parser
    primitives  identity    masks       shamir          the cryptography
    encoding    rounding    layout      bounds -> integers of a ring, and the proof that no sum overflows
    thresholds  graph       policy      how many must stay, who shares with whom, what a site insists on
    roster      pinning     spent       cohorts         what a site keeps on its disk: never a secret
    messages    derivation  sets        the bytes of every trip, and the keys behind them
    client      checks      steps       one explicit state machine for a site ...
    server      unmasking   journal     ... and one for the coordinator
    bench                               the figures, beside Flower's SecAgg+
"""
