"""The Web Messaging guest protocol, beside `webchat` and on the same ledger, faults and storage.

    socket:   gate (handshake) ─▶ connection (a frame in: fault drawn, ledger line) ─▶ dialogue (which call)
              ─▶ dialogue | files | posts (decide) ─▶ outlet (a frame out, or the damage)
    PUT:      storage | remote ─▶ uploads (the event) ─▶ outlet
    HTTP:     deployment, history
    below:    session, profile, limits, frames, chatter, timers, settings; `messenger` builds them all

Everything is decided without awaiting anything, so frames are processed in the order in which they came.
"""
