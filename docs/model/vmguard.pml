/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The protocol of vmguard (vmguard/guard.py) for one disk and three hosts, for the model checker spin. README.md in this
 * folder says what is modelled, what is left out, and why that is sound; ./check runs all variants.
 *
 * Everything is a step of one host: `hook` steps under its host lock, and what befalls it from outside. A step touches
 * one lease at most once, as in the code; between any two steps every other host may act and the hook may die.
 */

/* ------------------------------------------------------------------------------------------------ configurations --- */
#ifndef FAULTS
#define FAULTS 1                /* deaths of hooks, daemons, hosts, and losses of storage, in one run */
#endif
#ifndef COLD_G
#define COLD_G 3                /* on which hosts (bit mask) guest G may be started, */
#endif
#ifndef COLD_X
#define COLD_X 4                /* guest X, which knows the same disk by another name, */
#endif
#ifndef COME_G
#define COME_G 3                /* and to which G may migrate */
#endif
#define in(mask, h) ((mask >> h) & 1)

#define NOBODY 3                /* as a host */
#define OUTSIDE 3               /* as the source of a migration: G runs somewhere without this disk (virsh migrate --xml) */
#define G 1                     /* guests; 0 is none */
#define X 2

/* ---------------------------------------------------------------------------------------------------- the leases --- */
/* One resource of sanlock. free: owner is NOBODY. What an earlier membership of a host left behind counts as free, for
 * sanlock and for us, so a rejoin simply frees it. The note speaks only of the present owner and version: it is gone
 * with each acquire. */
typedef Slot {
    unsigned owner : 2;
    bit qemus;                  /* owned by QEMU's process; else an orphan of its host */
    unsigned note : 2           /* the guest that it names */
}
Slot lease, ticket;

/* ----------------------------------------------------------------------------------------------------- the hosts --- */
/* This host in the lockspace: a member; its sanlock daemon is dead, or back and not joined again; the store is away, and
 * sanlock ends who has leases; no member, known to itself. */
#define MEMBER 0
#define DOWN 1
#define LOSING 2
#define OUT 3

/* Records, see vmguard/instance.py */
#define NO_RECORD 0
#define INTENT 1
#define HELD 2
#define RUNNING 3

/* QEMU: waits for a guest that migrates in; its vCPUs run; stopped for good or until libvirt lets it go on */
#define NO_QEMU 0
#define INCOMING 1
#define RUNS 2
#define PAUSED 3

typedef Host {
    bit up;
    bit libvirtd;
    unsigned space : 2;
    unsigned at : 5;            /* the next step of the hook, join or handover that has the host lock; IDLE: nobody */

    unsigned record : 2;
    unsigned guest : 2;
    bit coming;                 /* taken for incoming */
    bit has_lease, has_ticket;  /* their versions (lver) are recorded */
    unsigned lease_grew : 2;    /* how often each was acquired since, by anybody; 2: more than once */
    unsigned ticket_grew : 2;
    bit mine;                   /* the libvirtd that starts it still lives */
    bit old;                    /* of an earlier membership */
    bit orphans;                /* owner is "host": sanlock does not know this QEMU */

    bit yes;                    /* libvirtd has prepare's yes, and no QEMU yet */
    bit due;                    /* libvirtd owes us `started` */
    unsigned qemu : 2;
    bit registered;             /* sanlock knows this QEMU */
    bit frozen;                 /* SIGSTOP by a join */
    bit stale;                  /* somebody else has written since this QEMU last knew the disk */
    bit watched;                /* USED_BY_ORPHANS: if the lockspace is lost, the watchdog resets this host */
#ifdef OFFLINE
    bit mark;                   /* left by an offline migration */
    bit cold;                   /* what libvirt really does, whatever the hook takes it for */
#endif
#ifdef BROKEN_GONE_BY_STATE
    unsigned thinks_gone : 3;   /* hosts that were dead or free in the snapshot that prepare took */
#endif
}
Host host[3];

/* The one migration that libvirt has under way. */
#define NONE 0
#define COPIES 1
#define STOPPED 2
unsigned moving : 2;
unsigned source : 2 = NOBODY;
unsigned target : 2 = NOBODY;

unsigned faults : 2 = FAULTS;
bit over;                       /* the end game was played */

/* --------------------------------------------------------------------------------- the steps of a hook, by name --- */
#define IDLE 0
#define PREPARE_TAKE 1
#define PREPARE_LOOK 2
#define PREPARE_BACK 3
#define PREPARE_HELD 4
#define PREPARE_YES 5
#define BESIDE_TAKE 6
#define BESIDE_LOOK_LEASE 7
#define BESIDE_LOOK_TICKET 8
#define BESIDE_BACK 9
#define STARTED 10
#define HANDOVER_ADOPT 11
#define HANDOVER_DROP 12
#define END_TICKET 13
#define END_LEASE 14
#define JOIN 15
#define JOIN_TICKET 16
#define JOIN_LEASE 17
#define JOIN_LET_GO 18
#define HANDOVER_TAKE 19
#define PREPARE_BEFORE 20

/* --------------------------------------------------------------------------------------------- what is observed --- */
#define writes(h) (host[h].qemu == RUNS && !host[h].frozen)
#ifdef NEWBORN
#define newborn(h) host[h].due
#else
#define newborn(h) false
#endif
/* Property 1 */
#define two_write(a, b) (writes(a) && writes(b) && !newborn(a) && !newborn(b))
/* Property 2 */
#define bare(h) (host[h].qemu != NO_QEMU && !host[h].frozen && !newborn(h) && lease.owner != h && ticket.owner != h)

/* The disk's contents move on: any other QEMU that exists knows less than there is, but the one that gets its memory from
 * this one. It must never write again. */
#define outdate(h, k) \
    if \
    :: (k != h && host[k].qemu != NO_QEMU && !(target == k && source == h)) -> host[k].stale = 1 \
    :: else \
    fi
inline begins_to_write(h) {
    assert(!host[h].stale);
    outdate(h, 0); outdate(h, 1); outdate(h, 2)
}

/* ------------------------------------------------------------------------------------------------ sanlock's part --- */
#define grow(k, grew) \
    if \
    :: (host[k].record != NO_RECORD && (host[k].has_lease || host[k].has_ticket) && host[k].grew < 2) -> host[k].grew++ \
    :: else \
    fi
inline acquire_lease(h) {
    lease.owner = h; lease.qemus = 0; lease.note = 0;
    grow(0, lease_grew); grow(1, lease_grew); grow(2, lease_grew)
}
inline acquire_ticket(h) {
    ticket.owner = h; ticket.qemus = 0; ticket.note = 0;
    grow(0, ticket_grew); grow(1, ticket_grew); grow(2, ticket_grew)
}
inline free(slot) { slot.owner = NOBODY; slot.qemus = 0; slot.note = 0 }
inline give_back(slot, h) { if :: slot.owner == h -> free(slot) :: else fi }
/* QEMU ends. sanlock frees what is QEMU's own, if it is in a state to write that down. */
inline end_qemu(h) {
    host[h].qemu = NO_QEMU; host[h].frozen = 0; host[h].stale = 0; host[h].registered = 0; host[h].due = 0;
    if
    :: host[h].space == MEMBER ->
        if :: lease.owner == h && lease.qemus -> free(lease) :: else fi;
        if :: ticket.owner == h && ticket.qemus -> free(ticket) :: else fi
    :: else
    fi
}

/* ----------------------------------------------------------------------------------------------------- a host's --- */
#define calm(h) (!over && host[h].up && host[h].at == IDLE)
#define step(h, s) (host[h].at == s && !over)
inline go(h, s) { host[h].at = s }
inline forget_versions(h) {
    host[h].has_lease = 0; host[h].has_ticket = 0; host[h].lease_grew = 0; host[h].ticket_grew = 0
}
inline forget(h) {
    forget_versions(h);
    host[h].record = NO_RECORD; host[h].guest = 0; host[h].coming = 0; host[h].mine = 0; host[h].old = 0;
    host[h].orphans = 0; host[h].yes = 0
}
#ifdef OFFLINE
#define is_cold(h) (!host[h].coming || host[h].cold)
#else
#define is_cold(h) (!host[h].coming)
#endif
inline idle(h) {
    host[h].at = IDLE;
    if :: host[h].record == INTENT -> forget_versions(h) :: else fi;
#ifdef BROKEN_GONE_BY_STATE
    host[h].thinks_gone = 0
#endif
}
inline refuse(h) { forget(h); idle(h) }
inline power_off(h) {
    end_qemu(h); forget(h); idle(h);
    host[h].up = 0; host[h].libvirtd = 0; host[h].watched = 0; host[h].space = OUT;
#ifdef OFFLINE
    host[h].mark = 0; host[h].cold = 0
#endif
}
inline begin_prepare(h, who) {
    host[h].record = INTENT; host[h].guest = who; host[h].mine = 1;
#ifdef BROKEN_GONE_BY_STATE
    host[h].thinks_gone = (host[0].space == OUT) + 2 * (host[1].space == OUT) + 4 * (host[2].space == OUT);
#endif
#ifdef OFFLINE
    host[h].cold = 1;
#endif
#ifdef BROKEN_LOOK_BEFORE_ONLY
    go(h, PREPARE_BEFORE);
#else
    go(h, PREPARE_TAKE);
#endif
#ifdef BROKEN_MARK_BY_UUID
    if :: who == G && host[h].mark -> host[h].mark = 0; host[h].coming = 1; go(h, BESIDE_TAKE) :: else fi
#endif
}
#define may_begin(h) (calm(h) && host[h].libvirtd && host[h].record == NO_RECORD && host[h].qemu == NO_QEMU && host[h].space == MEMBER)
inline begin_coming(h, from) {
    host[h].record = INTENT; host[h].guest = G; host[h].mine = 1; host[h].coming = 1;
    moving = COPIES; source = from; target = h;
    go(h, BESIDE_TAKE)
}
/* G runs there, and libvirt has nothing else to do with it */
#define can_leave(h) (host[h].up && host[h].libvirtd && host[h].guest == G && host[h].qemu == RUNS && !host[h].due)
#define is_nowhere(who) (host[0].guest != who && host[1].guest != who && host[2].guest != who)

/* Whose is it, for a guest that migrates in? */
#ifdef BROKEN_ANY_LIVE_OWNER
#define of_source(slot, h) (slot.owner != NOBODY && slot.owner != h)
#else
#define of_source(slot, h) (slot.owner != NOBODY && slot.owner != h && slot.note == G)
#endif
#ifdef BROKEN_GONE_BY_STATE
#define is_free(slot, h) (slot.owner == NOBODY || ((host[h].thinks_gone >> slot.owner) & 1))
#else
#define is_free(slot, h) (slot.owner == NOBODY)
#endif

/* An instance that has ended, or never came to be: `release`, or the sweep that each hook call begins with. */
#define is_over(h) (host[h].record == INTENT || (host[h].qemu == NO_QEMU && \
    (host[h].record == RUNNING || (host[h].record == HELD && !host[h].yes))))
/* libvirt has prepare's yes, or may have */
#define is_starting(h) (host[h].record == HELD && host[h].qemu == NO_QEMU && host[h].mine)

/* No member, or a join died before it had let the guests go on. */
#define must_join(h) (host[h].space == DOWN || host[h].space == OUT || (host[h].space == MEMBER && \
    host[h].qemu != NO_QEMU && host[h].record != INTENT && (host[h].frozen || host[h].old)))
/* A start whose QEMU could come any moment: it would not be frozen. */
#ifdef ASBUILT_JOIN_DURING_START
#define holds_up_join(h) false
#else
#define holds_up_join(h) is_starting(h)
#endif
#ifdef NO_WATCHDOG
#define can_expire(h) (host[h].space == OUT || host[h].space == DOWN)
#else
#define can_expire(h) (host[h].space == OUT)
#endif

/* Adoption for QEMU: an orphan becomes QEMU's; where there is none, sanlock acquires anew without a word. */
inline adopt_lease(h) {
    if :: lease.owner == NOBODY -> acquire_lease(h) :: else fi;
    if :: lease.owner == h -> lease.qemus = 1 :: else fi
}
inline adopt_ticket(h) {
    if :: ticket.owner == NOBODY -> acquire_ticket(h) :: else fi;
    if :: ticket.owner == h -> ticket.qemus = 1 :: else fi
}
#ifdef BROKEN_ADOPT_NO_LVER
#define lost(slot, h, has, grew) (has && slot.owner != h)
#else
#define lost(slot, h, has, grew) (has && (slot.owner != h || grew != 0))
#endif

active [3] proctype Machine() {
#define h _pid
#define me host[_pid]
    d_step { me.up = 1; me.libvirtd = 1; if :: h == 0 -> free(lease); free(ticket) :: else fi };
    (host[0].up && host[1].up && host[2].up);
    do
    /* ==================================================================== prepare: a start that begins here === */
    :: d_step { may_begin(h) && in(COLD_G, h) -> begin_prepare(h, G) }
    :: d_step { may_begin(h) && in(COLD_X, h) -> begin_prepare(h, X) }
#ifdef BROKEN_LOOK_BEFORE_ONLY
    :: d_step { step(h, PREPARE_BEFORE) -> if :: ticket.owner == NOBODY -> go(h, PREPARE_TAKE) :: else -> refuse(h) fi }
#endif
    :: d_step { step(h, PREPARE_TAKE) ->
        if
        :: me.space == MEMBER && lease.owner == NOBODY ->
            acquire_lease(h); me.has_lease = 1; me.lease_grew = 0;
#ifdef BROKEN_NO_TICKET_LOOK
            go(h, PREPARE_HELD)
#elif defined(BROKEN_LOOK_BEFORE_ONLY)
            go(h, PREPARE_HELD)
#else
            go(h, PREPARE_LOOK)
#endif
        :: me.space == MEMBER && lease.owner == h -> free(lease)   /* a leftover that no record wants */
        :: else -> refuse(h)
        fi }
    :: d_step { step(h, PREPARE_LOOK) ->
        if
        :: is_free(ticket, h) -> go(h, PREPARE_HELD)
        :: !is_free(ticket, h) && ticket.owner == h && me.space == MEMBER ->
            free(ticket); free(lease); forget_versions(h); go(h, PREPARE_TAKE)
        :: else -> go(h, PREPARE_BACK)
        fi }
    :: d_step { step(h, PREPARE_BACK) ->
        if
        :: me.space == MEMBER -> give_back(lease, h); refuse(h)
        :: else -> idle(h)                                          /* the intent stays, for a sweep */
        fi }

    /* ============================================================== prepare: a guest that migrates in (nonce) === */
    :: d_step { may_begin(h) && in(COME_G, h) && moving == NONE && h != 0 && can_leave(0) -> begin_coming(h, 0) }
    :: d_step { may_begin(h) && in(COME_G, h) && moving == NONE && h != 1 && can_leave(1) -> begin_coming(h, 1) }
    :: d_step { may_begin(h) && in(COME_G, h) && moving == NONE && h != 2 && can_leave(2) -> begin_coming(h, 2) }
#ifdef FROM_OUTSIDE
    :: d_step { may_begin(h) && in(COME_G, h) && moving == NONE && is_nowhere(G) -> begin_coming(h, OUTSIDE) }
#endif
    :: d_step { step(h, BESIDE_TAKE) ->
        if
        :: me.space != MEMBER -> refuse(h)
        :: me.space == MEMBER && (lease.owner == h || ticket.owner == h) -> give_back(lease, h); give_back(ticket, h)
        :: me.space == MEMBER && of_source(lease, h) && ticket.owner == NOBODY ->
            acquire_ticket(h); me.has_ticket = 1; me.ticket_grew = 0; go(h, BESIDE_LOOK_LEASE)
        :: me.space == MEMBER && lease.owner == NOBODY && (ticket.owner == NOBODY || of_source(ticket, h)) ->
            acquire_lease(h); me.has_lease = 1; me.lease_grew = 0; go(h, BESIDE_LOOK_TICKET)
        :: else -> refuse(h)
        fi }
    :: d_step { step(h, BESIDE_LOOK_LEASE) ->
        if
        :: lease.owner == NOBODY || of_source(lease, h) -> me.lease_grew = 0; go(h, PREPARE_HELD)
        :: else -> go(h, BESIDE_BACK)
        fi }
    :: d_step { step(h, BESIDE_LOOK_TICKET) ->
        if
        :: ticket.owner == NOBODY || of_source(ticket, h) -> go(h, PREPARE_HELD)
        :: else -> go(h, BESIDE_BACK)
        fi }
    :: d_step { step(h, BESIDE_BACK) ->
        if
        :: me.space == MEMBER -> give_back(lease, h); give_back(ticket, h); refuse(h)
        :: else -> idle(h)
        fi }

    /* ================================================================================ prepare: the end of both === */
    :: d_step { step(h, PREPARE_HELD) ->
        if :: me.has_lease && lease.owner == h -> lease.note = me.guest :: else fi;
        if :: me.has_ticket && ticket.owner == h -> ticket.note = me.guest :: else fi;
        me.record = HELD;
        go(h, PREPARE_YES) }
    :: d_step { step(h, PREPARE_YES) -> me.yes = (me.mine && me.libvirtd); idle(h) }

    /* ================================================================================ libvirt starts QEMU, or not === */
    :: d_step { !over && me.yes && is_cold(h) ->
        me.yes = 0; me.due = 1; me.registered = 1; me.qemu = RUNS;  /* vCPUs run before `started` */
        if :: !newborn(h) -> begins_to_write(h) :: else fi }
    :: d_step { !over && me.yes && !is_cold(h) && target == h -> me.yes = 0; me.due = 1; me.registered = 1; me.qemu = INCOMING }
    :: d_step { !over && me.yes -> me.yes = 0 }
    :: d_step { !over && me.qemu != NO_QEMU -> end_qemu(h) }

    /* ================================================== started; the same by a sweep, when its libvirtd has gone === */
    :: d_step { calm(h) && me.libvirtd && me.due ->
        if :: me.record == HELD -> go(h, STARTED) :: else -> me.due = 0 fi }
    :: d_step { calm(h) && me.space == MEMBER && me.record == HELD && me.qemu != NO_QEMU && !me.mine -> go(h, STARTED) }
    :: d_step { step(h, STARTED) ->
        if
        :: me.qemu == NO_QEMU || me.space == DOWN -> skip           /* cannot tell: the leases stay the host's */
        :: me.qemu != NO_QEMU && (me.space == LOSING || me.space == OUT) -> if :: me.due -> end_qemu(h) :: else fi
        :: me.qemu != NO_QEMU && me.space == MEMBER ->
            if :: me.has_ticket && me.registered -> adopt_ticket(h) :: else fi;
            if :: me.has_lease && me.registered -> adopt_lease(h) :: else fi;
            if
            :: lost(lease, h, me.has_lease, me.lease_grew) || lost(ticket, h, me.has_ticket, me.ticket_grew) ->
                if :: me.due -> end_qemu(h) :: else fi              /* only `started` ends a guest */
            :: else ->
                if :: newborn(h) && me.qemu == RUNS -> begins_to_write(h) :: else fi;
                me.record = RUNNING; me.orphans = !me.registered
            fi
        fi;
        me.due = 0; idle(h) }

    /* ============================================================================================== handover === */
    :: d_step { calm(h) && me.space == MEMBER && me.record == RUNNING && me.has_ticket && me.qemu == RUNS &&
                (lease.owner == NOBODY || lease.owner == h) ->
#ifdef BROKEN_HANDOVER_DROPS_T_FIRST
        give_back(ticket, h);
#endif
        go(h, HANDOVER_TAKE) }
    :: d_step { step(h, HANDOVER_TAKE) ->
        if
        :: me.space == MEMBER && lease.owner == NOBODY -> acquire_lease(h); go(h, HANDOVER_ADOPT)
        :: me.space == MEMBER && lease.owner == h -> go(h, HANDOVER_ADOPT)
        :: else -> idle(h)
        fi }
    :: d_step { step(h, HANDOVER_ADOPT) ->
        if
        :: me.space == MEMBER && lease.owner == h && (me.orphans || me.registered) ->
            lease.qemus = !me.orphans; lease.note = me.guest; me.has_lease = 1; me.lease_grew = 0;
            go(h, HANDOVER_DROP)
        :: else -> idle(h)                                          /* the lease stays an orphan, and is found again */
        fi }
    :: d_step { step(h, HANDOVER_DROP) ->
        if :: me.space == MEMBER -> give_back(ticket, h); me.has_ticket = 0; me.ticket_grew = 0 :: else fi;
        idle(h) }

    /* ======================================================================================= release, sweep === */
    :: d_step { calm(h) && is_over(h) && me.space == MEMBER -> if :: me.old -> forget(h) :: else -> go(h, END_TICKET) fi }
#ifndef ASBUILT_RELEASE_NEEDS_MEMBER
    /* What it had ends with that membership. */
    :: d_step { calm(h) && is_over(h) && (me.space == DOWN || me.space == OUT) -> forget(h) }
#endif
    :: d_step { step(h, END_TICKET) ->
        if :: me.space == MEMBER && (me.has_ticket || (me.record == INTENT && me.coming)) -> give_back(ticket, h) :: else fi;
        if :: me.space == MEMBER -> go(h, END_LEASE) :: else -> idle(h) fi }
    :: d_step { step(h, END_LEASE) ->
        if :: me.space == MEMBER -> give_back(lease, h); forget(h) :: else fi;
        idle(h) }

    /* ================================================================================================= join === */
    :: d_step { calm(h) && must_join(h) && !holds_up_join(h) ->
#ifndef BROKEN_JOIN_NO_FREEZE
        if :: me.qemu != NO_QEMU && me.record != INTENT -> me.frozen = 1 :: else fi;
#endif
        if :: me.space == MEMBER -> go(h, JOIN_TICKET) :: else -> go(h, JOIN) fi }
    :: d_step { step(h, JOIN) ->
        give_back(lease, h); give_back(ticket, h);                  /* void, for everybody, from now on */
        me.space = MEMBER; me.watched = 0; me.old = (me.record != NO_RECORD);
#ifdef BROKEN_JOIN_NO_FREEZE
        if :: me.qemu != NO_QEMU && me.record != INTENT -> go(h, JOIN_TICKET) :: else -> idle(h) fi }
#else
        if :: me.frozen -> go(h, JOIN_TICKET) :: else -> idle(h) fi }
#endif
    :: d_step { step(h, JOIN_TICKET) ->
        if
        :: me.qemu == NO_QEMU || me.space != MEMBER -> idle(h)
        :: me.qemu != NO_QEMU && me.space == MEMBER ->
            if :: me.has_ticket && ticket.owner == NOBODY -> acquire_ticket(h) :: else fi;
            if
            :: me.has_ticket && (ticket.owner != h || me.ticket_grew != 1) -> end_qemu(h); idle(h)
            :: else -> go(h, JOIN_LEASE)
            fi
        fi }
    :: d_step { step(h, JOIN_LEASE) ->
        if
        :: me.qemu == NO_QEMU || me.space != MEMBER -> idle(h)
        :: me.qemu != NO_QEMU && me.space == MEMBER ->
            if :: me.has_lease && lease.owner == NOBODY -> acquire_lease(h) :: else fi;
            if
            :: me.has_lease && (lease.owner != h || me.lease_grew != 1) -> end_qemu(h); idle(h)
#ifndef ASBUILT_REJOIN_BY_TICKET
            /* Who came in by the lease did not touch the ticket. */
            :: !me.has_lease && me.lease_grew != 0 -> end_qemu(h); idle(h)
#endif
            :: else -> go(h, JOIN_LET_GO)
            fi
        fi }
    :: d_step { step(h, JOIN_LET_GO) ->
        me.record = RUNNING; me.old = 0; me.orphans = 1; me.watched = 1; me.lease_grew = 0; me.ticket_grew = 0;
        if :: me.has_lease && lease.owner == h -> lease.note = me.guest :: else fi;
        if :: me.has_ticket && ticket.owner == h -> ticket.note = me.guest :: else fi;
        me.frozen = 0;
        if :: me.qemu == RUNS -> begins_to_write(h) :: else fi;
        idle(h) }

    /* ============================================================================================ migration === */
    :: d_step { !over && moving == COPIES && target == h && source != OUTSIDE && me.qemu == INCOMING && !me.due &&
                host[source].qemu == RUNS && !host[source].frozen ->
        host[source].qemu = PAUSED; moving = STOPPED }
    :: d_step { !over && target == h && me.qemu == INCOMING && !me.due && !me.frozen &&
                (moving == STOPPED || (moving == COPIES && source == OUTSIDE)) ->
        me.qemu = RUNS; begins_to_write(h);
        moving = NONE; source = NOBODY; target = NOBODY }
    /* It fails: QEMU at the target ends first, then the source goes on. */
    :: d_step { !over && target == h && !(me.record == INTENT && me.at != IDLE) ->
        if :: me.qemu == INCOMING -> end_qemu(h) :: else fi;
        if :: me.coming -> me.yes = 0 :: else fi;
        if
        :: moving == STOPPED && host[source].qemu == PAUSED ->
            host[source].qemu = RUNS;
            target = NOBODY;
            if :: !host[source].frozen -> begins_to_write(source) :: else fi
        :: else
        fi;
        moving = NONE; source = NOBODY; target = NOBODY }
#ifdef OFFLINE
    :: d_step { calm(h) && !me.mark && in(COME_G, h) -> me.mark = 1 }
#endif

    /* =============================================================================================== faults === */
    :: d_step { !over && faults > 0 && me.at != IDLE ->             /* the hook, join or handover dies */
        faults--;
        if :: me.at == STARTED -> me.due = 0 :: else fi;
        idle(h) }
    :: d_step { !over && faults > 0 && me.libvirtd -> faults--; me.libvirtd = 0; me.mine = 0; me.yes = 0; me.due = 0 }
    :: d_step { !over && me.up && !me.libvirtd -> me.libvirtd = 1 }
    :: d_step { !over && faults > 0 && me.up -> faults--; power_off(h) }
    :: d_step { !over && !me.up -> me.up = 1; me.libvirtd = 1 }
    :: d_step { !over && faults > 0 && me.space == MEMBER -> faults--; me.space = DOWN; me.registered = 0 }
    :: d_step { !over && me.space == DOWN -> power_off(h) }         /* the watchdog */
    :: d_step { !over && faults > 0 && me.space == MEMBER -> faults--; me.space = LOSING }
    :: d_step { !over && me.space == LOSING ->                      /* sanlock ends who has leases, then gives up */
        if
        :: me.qemu != NO_QEMU && ((lease.owner == h && lease.qemus) || (ticket.owner == h && ticket.qemus)) -> end_qemu(h)
        :: else -> if :: me.watched -> power_off(h) :: else -> me.space = OUT fi
        fi }
    /* sanlock on the other hosts: this one is dead now. Never while a start is under way: that takes less time. */
    :: d_step { !over && can_expire(h) && (!me.up || (me.at == IDLE && !me.yes && !me.due)) &&
                (lease.owner == h || ticket.owner == h) ->
        give_back(lease, h); give_back(ticket, h) }
    od
}
#undef h
#undef me

/* The end game, possible at any moment: all guests are gone for good, every hook that was at work has died, nobody fails
 * any more. Hosts that are down stay down. The others do what their next hook call, join and `vmguard gc` do. */
inline last_act(h) {
    end_qemu(h); host[h].at = IDLE; host[h].yes = 0;
    if
    :: !host[h].up || host[h].space == LOSING || host[h].space == OUT || host[h].space == DOWN ->
        give_back(lease, h); give_back(ticket, h); forget(h)        /* by death or by its rejoin */
    :: else ->
#ifndef BROKEN_NO_SWEEP
        if
        :: host[h].record == NO_RECORD || host[h].old -> skip
        :: else ->
            if
            :: host[h].has_ticket || (host[h].record == INTENT && host[h].coming) -> give_back(ticket, h)
            :: else
            fi;
            give_back(lease, h)
        fi;
#endif
#ifndef NO_GC
        give_back(lease, h); give_back(ticket, h);
#endif
        forget(h)
    fi
}

#define ok() (!two_write(0, 1) && !two_write(0, 2) && !two_write(1, 2) && !bare(0) && !bare(1) && !bare(2))
active proctype Judge() {
    (host[0].up && host[1].up && host[2].up);
    do
    :: d_step { !over && (two_write(0, 1) || two_write(0, 2) || two_write(1, 2)) -> assert(false) } /* property 1 */
    :: d_step { !over && (bare(0) || bare(1) || bare(2)) -> assert(false) }                         /* property 2 */
#ifdef ENDGAME
    :: d_step { !over ->
        last_act(0); last_act(1); last_act(2);
        assert(lease.owner == NOBODY && ticket.owner == NOBODY);                                    /* property 3 */
        over = 1 }
#endif
    od
}
