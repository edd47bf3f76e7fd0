"""The key material of a deployment: a private authority, a server's certificate, and how a site enrols.

A private key never leaves the machine that made it. A site sends a *request*, signed with both of its keys;
the coordinator answers with a *bundle* that names this very request, and the site believes it when its
operator has heard the coordinator's fingerprint over another channel.

Read in this order::

    problems    names                   codes and their fixes; names that may stand in a certificate
    storage     private     strict      files written once, keys for their owner alone, JSON in one form
    certificates            authority   X.509 made and checked; the coordinator's folder
    server                              the server's certificate, and its renewal
    request     bundle                  what a site asks and what it is answered, as strict signed JSON
    node        enrolment   joining     the site's keys; the coordinator's answer; the site's check of it
    removal                             a site that no longer belongs
    inspection  formats                 what a file is, for people and for the doctor
"""
