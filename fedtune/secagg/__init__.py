"""Secure aggregation: the server learns the sum of the sites' updates, and nothing else.

Bonawitz et al. 2017 (CCS, "Practical Secure Aggregation for Privacy-Preserving Machine Learning"), the
variant for an active server, with the sparse graph of Bell et al. 2020 (CCS, "Secure Single-Server
Aggregation with (Poly)Logarithmic Overhead") above 128 clients. The package is free of any transport:
bytes in, bytes out.

Read in this order::

    problems    canonical   wire        codes and their fixes; one encoding for hashes; a strict parser
    fields                              the same for JSON files
    primitives  identity    masks       shamir          the cryptography
    layout      encoding    rounding    bounds -> integers of a ring, and the proof that no sum overflows
    thresholds  graph       promise     policy          how many must stay, who shares with whom, what is held
    entry       roster      files       pinning         who belongs, and which version a site believes
    spent       cohorts     ledger                      what a site keeps on its disk: never a secret
    hashes      broadcast   derivation                  what an attempt is bound to, and the keys behind it
    messages    trips                                   the bytes of every trip
    states      checks      steps       client          one explicit state machine for a site ...
    collected   requests    intake      closing
    unmasking   server      rounds      journal
    transcript                                          ... and one for the coordinator
    bench       bench_peer  bench_parties               the figures, beside Flower's SecAgg+
"""
