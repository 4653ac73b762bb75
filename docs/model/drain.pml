/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The drain mark: what a dead guest has left in its host's page cache must reach the disk before the next guest of
 * another host reads or writes there. A model beside vmguard.pml and coarser: a host's permit (lease or ticket,
 * whichever) is one bit here, given out as vmguard.pml shows that it is.
 */
#ifndef FAULTS
#define FAULTS 1
#endif
#ifndef COLD
#define COLD 7                  /* on which hosts (bit mask) a guest may be started, */
#endif
#ifndef COME
#define COME 7                  /* and to which it may migrate */
#endif
#define in(mask, h) ((mask >> h) & 1)
#define NOBODY 3

#define MEMBER 0                /* of the lockspace; as in vmguard.pml */
#define DOWN 1
#define LOSING 2
#define OUT 3

#define NO_QEMU 0
#define INCOMING 1
#define RUNS 2
#define PAUSED 3

#define IDLE 0                  /* the next step of what has the host lock */
#define LOOK 1
#define MARK 2
#define MARK_COMING 3
#define FLUSHED 4
#define DRAINED 5
#define JOIN_FLUSH 6
#define JOIN 7
#define RETAKE 8

typedef Host {
    bit up = 1;
    unsigned space : 2;
    unsigned at : 4;
    bit record;                 /* an instance, from its intent to its release */
    bit marked;                 /* it has the drain mark, and knows it */
    bit coming;
    bit stays;                  /* its permit is the host's: it outlives QEMU, until release */
    bit ready;                  /* prepare has said yes */
    bit draining;               /* the record of an earlier instance, whose cache is being written out */
    bit permit;                 /* lease or ticket, as all hosts see it */
    unsigned qemu : 2;
    bit frozen;
    bit overtaken;              /* somebody got a permit while a join had stopped QEMU */
    bit dirty                   /* the page cache has what the disk has not */
}
Host host[3];
unsigned drain : 2 = NOBODY;    /* owner of the drain mark: always an orphan of a host */
unsigned source : 2 = NOBODY;
unsigned target : 2 = NOBODY;
bit stopped;                    /* the guest has stopped at its source, and may run at either end */
unsigned faults : 2 = FAULTS;
bit over;

#define calm(h) (!over && host[h].up && host[h].at == IDLE)
#define step(h, s) (!over && host[h].at == s)
#define say(what) printf(what, 65 + h)
#define partner(h, k) ((source == h && target == k) || (source == k && target == h))
#define is_strange(h, k) (k != h && host[k].permit && !partner(h, k))
#define no_stranger(h) (!is_strange(h, 0) && !is_strange(h, 1) && !is_strange(h, 2))
#define is_free (!host[0].permit && !host[1].permit && !host[2].permit)

/* The property */
#define reaches_a_late_write(h, k) (k != h && host[k].dirty)
inline begins_to_write(h) {
    assert(!reaches_a_late_write(h, 0) && !reaches_a_late_write(h, 1) && !reaches_a_late_write(h, 2));
    host[h].dirty = 1
}
/* The other end of a guest's own migration does not overtake it; a start that begins here overtakes all. */
#define overtakes(h, k, cold) \
    if :: (k != h && host[k].frozen && (cold || !partner(h, k))) -> host[k].overtaken = 1 :: else fi
inline grant(h, cold) { host[h].permit = 1; overtakes(h, 0, cold); overtakes(h, 1, cold); overtakes(h, 2, cold) }
inline forget(h) {
    host[h].record = 0; host[h].marked = 0; host[h].coming = 0; host[h].stays = 0; host[h].ready = 0
}
inline give_mark_back(h) { if :: drain == h && !host[h].draining -> drain = NOBODY :: else fi }
inline refuse(h) {
    host[h].permit = 0; forget(h); host[h].at = IDLE
}
inline take_mark(h) { if :: drain == NOBODY || drain == h -> drain = h; host[h].marked = 1 :: else fi }
inline end_qemu(h) {
    host[h].qemu = NO_QEMU; host[h].frozen = 0; host[h].overtaken = 0;
    if :: host[h].space == MEMBER && !host[h].stays -> host[h].permit = 0 :: else fi;
    if :: source == h && !stopped -> source = NOBODY; target = NOBODY :: else fi
}
inline power_off(h) {
    end_qemu(h); forget(h);
    host[h].up = 0; host[h].at = IDLE; host[h].space = OUT; host[h].dirty = 0; host[h].draining = 0
}
inline lose_all(h) {
    host[h].permit = 0;
    if :: drain == h -> drain = NOBODY :: else fi
}
#define can_leave(h) (host[h].up && host[h].qemu == RUNS)
inline begin_coming(h, from) {
    host[h].record = 1; host[h].coming = 1; source = from; target = h; grant(h, false); host[h].at = MARK_COMING
}
#define may_begin(h) (calm(h) && target != h && !host[h].record && host[h].qemu == NO_QEMU && host[h].space == MEMBER)

active [3] proctype Machine() {
#define h _pid
#define me host[_pid]
end:do
    /* a start that begins here: the permit, a look at the mark, the mark */
    :: d_step { may_begin(h) && in(COLD, h) && is_free -> say("%c: start: has its permit\n");
        me.record = 1; grant(h, true);
#ifdef BROKEN_NO_DRAIN
        me.ready = 1 }
#else
        me.at = LOOK }
#endif
    :: d_step { step(h, LOOK) -> say("%c: looks at the drain mark\n");
        if :: drain == NOBODY || drain == h -> me.at = MARK :: else -> refuse(h) fi }
    :: d_step { step(h, MARK) -> say("%c: takes the drain mark, says yes\n");
        if
        :: me.space == MEMBER && (drain == NOBODY || drain == h) -> take_mark(h); me.ready = 1; me.at = IDLE
        :: else -> refuse(h)
        fi }
    /* one that migrates in: the source's mark does not stand against it */
    :: d_step { may_begin(h) && in(COME, h) && target == NOBODY && h != 0 && can_leave(0) ->
        say("%c: comes from A, has its permit\n"); begin_coming(h, 0) }
    :: d_step { may_begin(h) && in(COME, h) && target == NOBODY && h != 1 && can_leave(1) ->
        say("%c: comes from B, has its permit\n"); begin_coming(h, 1) }
    :: d_step { may_begin(h) && in(COME, h) && target == NOBODY && h != 2 && can_leave(2) ->
        say("%c: comes from C, has its permit\n"); begin_coming(h, 2) }
    :: d_step { step(h, MARK_COMING) -> say("%c: takes the drain mark if it is free, says yes\n");
#ifndef BROKEN_NO_DRAIN
        if :: me.space == MEMBER -> take_mark(h) :: else fi;
#endif
#ifndef ASBUILT_NO_MARK_NO_FLUSH
        me.stays = !me.marked;
#endif
        me.ready = 1; me.at = IDLE }

    :: d_step { !over && me.ready && !me.coming ->
        say("%c: QEMU starts\n"); me.ready = 0; me.qemu = RUNS; begins_to_write(h) }
    :: d_step { !over && me.ready && me.coming ->
        say("%c: QEMU starts with -incoming\n"); me.ready = 0; me.qemu = INCOMING }
    :: d_step { !over && me.ready -> say("%c: libvirt gives the start up\n"); me.ready = 0 }
    :: d_step { !over && me.qemu != NO_QEMU -> say("%c: QEMU ends\n"); end_qemu(h) }

    /* migration: QEMU writes its cache out before it hands the guest over */
    :: d_step { !over && target == h && me.qemu == INCOMING && !stopped &&
                host[source].qemu == RUNS && !host[source].frozen ->
        say("%c: the guest stops at its source\n");
        host[source].qemu = PAUSED; host[source].dirty = 0; stopped = 1 }
    :: d_step { !over && target == h && me.qemu == INCOMING && stopped && !me.frozen ->
        say("%c: the guest runs here now\n");
        me.qemu = RUNS; begins_to_write(h);
        source = NOBODY; target = NOBODY; stopped = 0 }
    :: d_step { !over && target == h && (me.at == IDLE || !me.coming) && me.qemu != RUNS ->
        say("%c: the migration to here fails\n");
        if :: me.qemu == INCOMING -> end_qemu(h) :: else fi;
        me.ready = 0;
        if
        :: stopped && host[source].qemu == PAUSED ->
            host[source].qemu = RUNS;
            if :: !host[source].frozen -> begins_to_write(source) :: else fi
        :: else
        fi;
        source = NOBODY; target = NOBODY; stopped = 0 }

#ifndef BROKEN_NO_DRAIN
    /* handover */
    :: d_step { calm(h) && me.record && me.qemu == RUNS && !me.marked && me.space == MEMBER && drain == NOBODY ->
        say("%c: handover: takes the drain mark\n");
        take_mark(h); me.stays = 0 }
#endif
    /* release, or a sweep */
    :: d_step { calm(h) && me.record && !me.ready && me.qemu == NO_QEMU && me.space == MEMBER -> say("%c: release\n");
        if
        :: me.marked -> me.permit = 0; me.draining = 1; forget(h)
        :: !me.marked && me.stays -> me.at = FLUSHED; me.dirty = 0
        :: else -> give_mark_back(h); me.permit = 0; forget(h)
        fi }
    :: d_step { step(h, FLUSHED) -> say("%c: release: cache is written out, gives its permit back\n");
        if :: me.space == MEMBER -> give_mark_back(h); me.permit = 0; forget(h) :: else fi;
        me.at = IDLE }
    /* The cache is one, whoever filled it: what a guest that runs here again has in it, its own mark covers. */
    :: d_step { calm(h) && me.draining && me.space == MEMBER -> say("%c: cache is written out\n");
        me.dirty = (me.qemu == RUNS); me.at = DRAINED }
    :: d_step { step(h, DRAINED) -> say("%c: gives the drain mark back\n");
        if
        :: me.space == MEMBER -> me.draining = 0; if :: drain == h && !me.record -> drain = NOBODY :: else fi
        :: else
        fi;
        me.at = IDLE }
    /* The kernel writes when it likes: that is the late write. */
    :: d_step { !over && me.dirty && me.qemu != RUNS -> say("%c: the kernel writes\n"); me.dirty = 0 }

    /* join */
    :: d_step { calm(h) && (me.space == DOWN || me.space == OUT) && !me.ready -> say("%c: join begins\n");
        me.frozen = (me.qemu != NO_QEMU);
#ifdef ASBUILT_JOIN_WITHOUT_FLUSH
        me.at = JOIN }
#else
        me.at = JOIN_FLUSH }
#endif
    :: d_step { step(h, JOIN_FLUSH) -> say("%c: join: cache is written out\n"); me.dirty = 0; me.at = JOIN }
    :: d_step { step(h, JOIN) -> say("%c: joins: all it had is void\n");
        lose_all(h); me.space = MEMBER; me.draining = 0;
        if :: me.frozen -> me.at = RETAKE :: else -> forget(h); me.at = IDLE fi }
    :: d_step { step(h, RETAKE) -> say("%c: join: takes all again, or ends QEMU\n");
        if
        :: me.space != MEMBER || me.qemu == NO_QEMU -> skip
        :: me.space == MEMBER && me.qemu != NO_QEMU &&
            (me.overtaken || !no_stranger(h) || (me.marked && drain != NOBODY && drain != h)) -> end_qemu(h)
        :: else ->
            grant(h, false);
            if :: me.marked -> drain = h :: else fi;
            me.frozen = 0; me.overtaken = 0;
            if :: me.qemu == RUNS -> begins_to_write(h) :: else fi
        fi;
        me.at = IDLE }
    :: d_step { calm(h) && me.frozen && me.space == MEMBER -> say("%c: join begins anew\n"); me.at = RETAKE }

    /* faults */
    :: d_step { !over && faults > 0 && me.at != IDLE -> say("%c: FAULT: the hook dies\n"); faults--; me.at = IDLE }
    :: d_step { !over && faults > 0 && me.up -> say("%c: FAULT: power cut\n"); faults--; power_off(h) }
    :: d_step { !over && !me.up -> say("%c: boots\n"); me.up = 1 }
    :: d_step { !over && faults > 0 && me.space == MEMBER ->
        say("%c: FAULT: sanlock's daemon dies\n"); faults--; me.space = DOWN }
    :: d_step { !over && me.space == DOWN -> say("%c: the watchdog resets the host\n"); power_off(h) }
    :: d_step { !over && faults > 0 && me.space == MEMBER ->
        say("%c: FAULT: the store is away\n"); faults--; me.space = LOSING }
    :: d_step { !over && me.space == LOSING -> say("%c: sanlock ends QEMU, gives up\n");
        if :: me.qemu != NO_QEMU -> end_qemu(h) :: else fi;
        me.space = OUT }
    /* No QEMU is left by then (vmguard.pml), and the kernel has written what it had to: that takes half a minute, this
     * more than one. */
    :: d_step { !over && me.space == OUT && (me.permit || drain == h) &&
                (!me.up || (me.at == IDLE && !me.ready && !me.dirty && me.qemu == NO_QEMU)) ->
        say("%c: is dead for the others\n"); lose_all(h) }
    od
}
#undef h
#undef me

/* The end game, as in vmguard.pml. */
inline last_act(h) {
    end_qemu(h);
    if
    :: host[h].space != MEMBER -> lose_all(h)
    :: host[h].space == MEMBER && (host[h].record || host[h].draining) -> lose_all(h)
    :: else
    fi;
    forget(h); host[h].draining = 0; host[h].at = IDLE; host[h].dirty = 0
}
active proctype Judge() {
end:do
    :: d_step { !over ->
        last_act(0); last_act(1); last_act(2);
        assert(drain == NOBODY && !host[0].permit && !host[1].permit && !host[2].permit);
        over = 1 }
    od
}
