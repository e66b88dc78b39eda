"""A campaign that counts: the real daemon against the sandbox, struck at every turn, and nothing may be lost.

    python -m tests.campaign --seed 7 [--part kills,syscalls,errors,power,faults] [--kills N --files M --cuts K]

    __main__   which parts, how large, the table, the exit code
    kills  calls  errors  disks  power  faults      the parts: who strikes what, and when
    world      one daemon with its inboxes: drops files, starts and kills it, writes down what every death left behind
    judgement  what must hold, checked on what a world wrote down
    nursery  intercept  platform  mounts           fast starts, a hand on each system call, the sandbox, disks
    report     counts and violations

The seed decides what is dropped and where is struck; how the processes are scheduled it cannot decide, so a run is
repeated in its choices and not to the microsecond.
"""
