"""The door between the sites and Flower's SuperLink.

The SuperLink serves its Fleet, Control and Runtime APIs on one port, and Control asks for no login. It
therefore listens on loopback alone; sites reach the gate, which passes on the Fleet routes and nothing else.

Read in this order::

    settings    routes                  what is allowed: numbers, and requests
    throttle    peers                   how fast, how many connections; one line of log for each refusal
    traffic                             what each node sent and got, and when it was last seen
    tls                                 the gate's certificate, and the SuperLink's that it checks
    passage                             one request on its way to the SuperLink and back, as an ASGI app
    protocol                            what uvicorn leaves to us: connections that say nothing, and too many
    server                              the gate as a thread: start, stop, and what went wrong
"""
