/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The protocol of vmguard (vmguard/guard.py) for one disk and three hosts, for the model checker spin. README.md in
 * this folder says what is modelled, what is left out, and why that is sound; ./check runs all variants.
 *
 * Everything is a step of one host: `hook` steps under its host lock, and what befalls it from outside. A step touches
 * one lease at most once, as in the code; between any two steps every other host may act and the hook may die.
 */

/* ---------------------------------------------------------------------------------------------- configurations --- */
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
#define OUTSIDE 3               /* as the source of a migration: G runs somewhere, without this disk */
#define G 1                     /* guests; 0 is none */
#define X 2

/* -------------------------------------------------------------------------------------------------- the leases --- */
/* One resource of sanlock. free: owner is NOBODY. What an earlier membership of a host left behind counts as free, for
 * sanlock and for us, so a rejoin simply frees it. The note speaks only of the present owner and version: it is gone
 * with each acquire. */
typedef Slot {
    unsigned owner : 2 = NOBODY;
    bit qemus;                  /* owned by QEMU's process; else an orphan of its host */
    unsigned note : 2           /* the guest that it names */
}
Slot lease, ticket;

/* --------------------------------------------------------------------------------------------------- the hosts --- */
/* This host in the lockspace: a member; its sanlock daemon is dead, or back and not joined again; the store is away,
 * and sanlock ends who has leases; no member, known to itself. */
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
    bit up = 1;
    bit libvirtd = 1;
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

/* -------------------------------------------------------------------------------- the steps of a hook, by name --- */
#define IDLE 0
#define PREPARE_BEFORE 1
#define PREPARE_TAKE 2
#define PREPARE_LOOK 3
#define PREPARE_BACK 4
#define PREPARE_HELD 5
#define BESIDE_TAKE 6
#define BESIDE_LOOK_LEASE 7
#define BESIDE_LOOK_TICKET 8
#define BESIDE_BACK 9
#define HANDOVER_TAKE 10
#define HANDOVER_ADOPT 11
#define HANDOVER_DROP 12
#define END_TICKET 13
#define END_LEASE 14
#define JOIN 15
#define JOIN_TICKET 16
#define JOIN_LEASE 17
#define JOIN_LET_GO 18

/* -------------------------------------------------------------------------------------------- what is observed --- */
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

/* The disk's contents move on: any other QEMU that exists knows less than there is, but the one that gets its memory
 * from this one. It must never write again. */
#define outdate(h, k) \
    if \
    :: (k != h && host[k].qemu != NO_QEMU && !(target == k && source == h)) -> host[k].stale = 1 \
    :: else \
    fi
inline begins_to_write(h) {
    assert(!host[h].stale);
    outdate(h, 0); outdate(h, 1); outdate(h, 2)
}

/* ---------------------------------------------------------------------------------------------- sanlock's part --- */
#define counts(k) (host[k].record != NO_RECORD && (host[k].record != RUNNING || host[k].qemu != NO_QEMU))
#define lease_grows(k) \
    if \
    :: (counts(k) && (host[k].has_lease || host[k].has_ticket) && host[k].lease_grew < 2) -> host[k].lease_grew++ \
    :: else \
    fi
#define ticket_grows(k) \
    if \
    :: (counts(k) && host[k].has_ticket && host[k].ticket_grew < 2) -> host[k].ticket_grew++ \
    :: else \
    fi
inline acquire_lease(h) {
    lease.owner = h; lease.qemus = 0; lease.note = 0;
    lease_grows(0); lease_grows(1); lease_grows(2)
}
inline acquire_ticket(h) {
    ticket.owner = h; ticket.qemus = 0; ticket.note = 0;
    ticket_grows(0); ticket_grows(1); ticket_grows(2)
}
inline free(slot) { slot.owner = NOBODY; slot.qemus = 0; slot.note = 0 }
inline give_back(slot, h) { if :: slot.owner == h -> free(slot) :: else fi }
/* QEMU ends. sanlock frees what is QEMU's own, if it is in a state to write that down. */
inline end_qemu(h) {
    host[h].qemu = NO_QEMU; host[h].frozen = 0; host[h].stale = 0; host[h].registered = 0; host[h].due = 0;
    if                              /* a migration is one of this very QEMU; once that has stopped, all has been sent */
    :: moving == COPIES && source == h -> moving = NONE; source = NOBODY; target = NOBODY
    :: else
    fi;
    /* What nobody asks for any more is set to one value, here and elsewhere: the fewer states there are. */
    if
    :: host[h].record == RUNNING ->
        host[h].lease_grew = 0; host[h].ticket_grew = 0; host[h].has_lease = 1; host[h].orphans = 0
    :: else
    fi;
    if
    :: host[h].space == MEMBER ->
        if :: lease.owner == h && lease.qemus -> free(lease) :: else fi;
        if :: ticket.owner == h && ticket.qemus -> free(ticket) :: else fi
    :: else
    fi
}

/* ---------------------------------------------------------------------------------------------------- a host's --- */
#define calm(h) (!over && host[h].up && host[h].at == IDLE)
#define step(h, s) (host[h].at == s && !over)
#ifdef WITNESS
#define witness(s) assert(s != WITNESS)     /* "violated" where the search gets to this step */
#else
#define witness(s) skip
#endif
inline go(h, s) { host[h].at = s; witness(s) }
inline forget_versions(h) {
    host[h].has_lease = 0; host[h].has_ticket = 0; host[h].lease_grew = 0; host[h].ticket_grew = 0
}
inline forget(h) {
    forget_versions(h);
    host[h].record = NO_RECORD; host[h].guest = 0; host[h].coming = 0; host[h].mine = 0; host[h].old = 0;
    host[h].orphans = 0; host[h].yes = 0;
#ifdef OFFLINE
    host[h].cold = 0
#endif
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
    host[h].mark = 0
#endif
}
inline take_lease(h) {
    acquire_lease(h); host[h].has_lease = 1; host[h].lease_grew = 0;
#if defined(BROKEN_NO_TICKET_LOOK) || defined(BROKEN_LOOK_BEFORE_ONLY)
    go(h, PREPARE_HELD)
#else
    go(h, PREPARE_LOOK)
#endif
}
#define is_dead(k) (host[k].space == OUT && lease.owner != k && ticket.owner != k)
inline begin_prepare(h, who) {
    host[h].record = INTENT; host[h].guest = who; host[h].mine = 1;
#ifdef BROKEN_GONE_BY_STATE
    host[h].thinks_gone = is_dead(0) + 2 * is_dead(1) + 4 * is_dead(2);
#endif
#ifdef OFFLINE
    host[h].cold = 1;
#endif
    /* The intent and the acquire are one step here: an intent with nothing taken is the same as none. */
#ifdef BROKEN_LOOK_BEFORE_ONLY
    go(h, PREPARE_BEFORE)
#elif defined(BROKEN_MARK_BY_UUID)
    if
    :: who == G && host[h].mark -> host[h].mark = 0; host[h].coming = 1; go(h, BESIDE_TAKE)
    :: else -> go(h, PREPARE_TAKE)
    fi
#elif defined(BROKEN_GONE_BY_STATE)
    go(h, PREPARE_TAKE)
#else
    if :: lease.owner == h -> free(lease) :: else fi;   /* a leftover that no record wants */
    take_lease(h)
#endif
}
#define may_begin(h) (calm(h) && host[h].libvirtd && \
    host[h].record == NO_RECORD && host[h].qemu == NO_QEMU && host[h].space == MEMBER)
/* Others refuse without a trace. */
#if defined(BROKEN_LOOK_BEFORE_ONLY) || defined(BROKEN_MARK_BY_UUID) || defined(BROKEN_GONE_BY_STATE)
#define may_take(h) true
#else
#define may_take(h) (lease.owner == NOBODY || lease.owner == h)
#endif
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
/* USED_BY_ORPHANS: the watchdog resets a host whose lockspace is lost, for a guest whose leases are the host's. */
#ifdef ASBUILT_START_UNWATCHED
#define is_watched(h) host[h].watched
#else
#define is_watched(h) (host[h].watched || host[h].record == INTENT || host[h].record == HELD)
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

inline retake(h) { if :: host[h].has_ticket -> go(h, JOIN_TICKET) :: else -> go(h, JOIN_LEASE) fi }

/* For a reader of a counterexample. */
#define say(what) printf(what, 65 + h)

active [3] proctype Machine() {
#define h _pid
#define me host[_pid]
end:do
    /* ==================================================================== prepare: a start that begins here === */
    :: d_step { may_begin(h) && in(COLD_G, h) && may_take(h) -> say("%c: start G\n"); begin_prepare(h, G) }
    :: d_step { may_begin(h) && in(COLD_X, h) && may_take(h) -> say("%c: start X\n"); begin_prepare(h, X) }
#ifdef BROKEN_LOOK_BEFORE_ONLY
    :: d_step { step(h, PREPARE_BEFORE) ->
        say("%c: looks at the ticket before\n");
        if :: ticket.owner == NOBODY -> go(h, PREPARE_TAKE) :: else -> refuse(h) fi }
#endif
    :: d_step { step(h, PREPARE_TAKE) -> say("%c: acquires the lease\n");
        if
        :: me.space == MEMBER && lease.owner == NOBODY -> take_lease(h)
        :: me.space == MEMBER && lease.owner == h -> free(lease)   /* a leftover that no record wants */
        :: else -> refuse(h)
        fi }
    :: d_step { step(h, PREPARE_LOOK) -> say("%c: looks at the ticket\n");
        if
        :: is_free(ticket, h) -> go(h, PREPARE_HELD)
        :: !is_free(ticket, h) && ticket.owner == h && me.space == MEMBER ->
            free(ticket); free(lease); forget_versions(h); go(h, PREPARE_TAKE)
        :: else -> go(h, PREPARE_BACK)
        fi }
    :: d_step { step(h, PREPARE_BACK) -> say("%c: gives the lease back and refuses\n");
        if
        :: me.space == MEMBER -> give_back(lease, h); refuse(h)
        :: else -> idle(h)                                          /* the intent stays, for a sweep */
        fi }

    /* ============================================================== prepare: a guest that migrates in (nonce) === */
    :: d_step { may_begin(h) && in(COME_G, h) && moving == NONE && h != 0 && can_leave(0) ->
        say("%c: G is to come from A\n"); begin_coming(h, 0) }
    :: d_step { may_begin(h) && in(COME_G, h) && moving == NONE && h != 1 && can_leave(1) ->
        say("%c: G is to come from B\n"); begin_coming(h, 1) }
    :: d_step { may_begin(h) && in(COME_G, h) && moving == NONE && h != 2 && can_leave(2) ->
        say("%c: G is to come from C\n"); begin_coming(h, 2) }
#ifdef FROM_OUTSIDE
    :: d_step { may_begin(h) && in(COME_G, h) && moving == NONE && is_nowhere(G) ->
        say("%c: G is to come from elsewhere\n"); begin_coming(h, OUTSIDE) }
#endif
    :: d_step { step(h, BESIDE_TAKE) -> say("%c: incoming: acquires the ticket or the lease\n");
        if
        :: me.space != MEMBER -> refuse(h)
        :: me.space == MEMBER && (lease.owner == h || ticket.owner == h) -> give_back(lease, h); give_back(ticket, h)
        :: me.space == MEMBER && of_source(lease, h) && ticket.owner == NOBODY ->
            acquire_ticket(h); me.has_ticket = 1; me.ticket_grew = 0; go(h, BESIDE_LOOK_LEASE)
        :: me.space == MEMBER && lease.owner == NOBODY && (ticket.owner == NOBODY || of_source(ticket, h)) ->
            acquire_lease(h); me.has_lease = 1; me.lease_grew = 0; go(h, BESIDE_LOOK_TICKET)
        :: else -> refuse(h)
        fi }
    :: d_step { step(h, BESIDE_LOOK_LEASE) -> say("%c: incoming: has the ticket, looks at the lease\n");
        if
        :: lease.owner == NOBODY || of_source(lease, h) -> me.lease_grew = 0; go(h, PREPARE_HELD)
        :: else -> go(h, BESIDE_BACK)
        fi }
    :: d_step { step(h, BESIDE_LOOK_TICKET) -> say("%c: incoming: has the lease, looks at the ticket\n");
        if
        :: ticket.owner == NOBODY || of_source(ticket, h) -> go(h, PREPARE_HELD)
        :: else -> go(h, BESIDE_BACK)
        fi }
    :: d_step { step(h, BESIDE_BACK) -> say("%c: incoming: gives back and refuses\n");
        if
        :: me.space == MEMBER -> give_back(lease, h); give_back(ticket, h); refuse(h)
        :: else -> idle(h)
        fi }

    /* ================================================================================ prepare: the end of both === */
    :: d_step { step(h, PREPARE_HELD) -> say("%c: record: held; note\n");
        if :: me.has_lease && lease.owner == h -> lease.note = me.guest :: else fi;
        if :: me.has_ticket && ticket.owner == h -> ticket.note = me.guest :: else fi;
        me.record = HELD; me.yes = (me.mine && me.libvirtd); idle(h) }

    /* ============================================================================= libvirt starts QEMU, or not === */
    :: d_step { !over && me.yes && is_cold(h) -> say("%c: QEMU starts, vCPUs run\n");
        me.yes = 0; me.due = 1; me.registered = 1; me.qemu = RUNS;  /* vCPUs run before `started` */
        if :: !newborn(h) -> begins_to_write(h) :: else fi }
    :: d_step { !over && me.yes && !is_cold(h) ->
        say("%c: QEMU starts with -incoming\n"); me.yes = 0; me.due = 1; me.registered = 1; me.qemu = INCOMING }
    :: d_step { !over && me.yes -> say("%c: libvirt gives the start up\n"); me.yes = 0 }
    :: d_step { !over && me.qemu != NO_QEMU -> say("%c: QEMU ends\n"); end_qemu(h) }

    /* ================================================ started; the same by a sweep, when its libvirtd has gone === */
    :: d_step { calm(h) && me.libvirtd && me.due && me.record != HELD -> me.due = 0 }   /* a join has seen to it */
    :: d_step { calm(h) && me.record == HELD && me.qemu != NO_QEMU &&
                ((me.libvirtd && me.due) || (!me.mine && me.space == MEMBER)) ->
        say("%c: started (or a sweep): the leases become QEMU's\n");
        if
        :: me.space == DOWN -> skip                                  /* cannot tell: the leases stay the host's */
        :: me.space == LOSING || me.space == OUT -> if :: me.due -> end_qemu(h) :: else fi
        :: me.space == MEMBER ->
            if :: me.has_ticket && me.registered -> adopt_ticket(h) :: else fi;
            if :: me.has_lease && me.registered -> adopt_lease(h) :: else fi;
            if
            :: lost(lease, h, me.has_lease, me.lease_grew) || lost(ticket, h, me.has_ticket, me.ticket_grew) ->
                if :: me.due -> end_qemu(h) :: else fi              /* only `started` ends a guest */
            :: else ->
                if :: newborn(h) && me.qemu == RUNS -> begins_to_write(h) :: else fi;
                me.record = RUNNING; me.orphans = !me.registered; me.mine = 0; me.coming = 0
            fi
        fi;
        me.due = 0 }

    /* ============================================================================================== handover === */
    :: d_step { calm(h) && me.space == MEMBER && me.record == RUNNING && me.has_ticket && me.qemu == RUNS &&
                (lease.owner == NOBODY || lease.owner == h) -> say("%c: handover begins\n");
#ifdef BROKEN_HANDOVER_DROPS_T_FIRST
        give_back(ticket, h); go(h, HANDOVER_TAKE) }
#else
        if :: lease.owner == NOBODY -> acquire_lease(h) :: else fi;
        go(h, HANDOVER_ADOPT) }
#endif
    :: d_step { step(h, HANDOVER_TAKE) -> say("%c: handover: acquires the lease\n");
        if
        :: me.space == MEMBER && lease.owner == NOBODY -> acquire_lease(h); go(h, HANDOVER_ADOPT)
        :: me.space == MEMBER && lease.owner == h -> go(h, HANDOVER_ADOPT)
        :: else -> idle(h)
        fi }
    :: d_step { step(h, HANDOVER_ADOPT) -> say("%c: handover: the lease becomes QEMU's\n");
        if
        :: me.space == MEMBER && lease.owner == h && (me.orphans || me.registered) ->
            lease.qemus = !me.orphans; lease.note = me.guest; me.has_lease = 1; me.lease_grew = 0;
            go(h, HANDOVER_DROP)
        :: else -> idle(h)                                          /* the lease stays an orphan, and is found again */
        fi }
    :: d_step { step(h, HANDOVER_DROP) -> say("%c: handover: drops the ticket\n");
        if :: me.space == MEMBER -> give_back(ticket, h); me.has_ticket = 0; me.ticket_grew = 0 :: else fi;
        idle(h) }

    /* ======================================================================================= release, sweep === */
    :: d_step { calm(h) && is_over(h) && me.space == MEMBER -> say("%c: release or sweep begins\n");
#ifdef ASBUILT_FORGETS_OLD
        if :: me.old -> forget(h) :: else -> go(h, END_TICKET) fi }
#else
        if :: me.has_ticket || (me.record == INTENT && me.coming) -> go(h, END_TICKET) :: else -> go(h, END_LEASE) fi }
        /* of an old membership too: a join may have died with some of it taken again */
#endif
    /* What it had ends with that membership. */
    :: d_step { calm(h) && is_over(h) && (me.space == DOWN || me.space == OUT) ->
        say("%c: release by no member: the record is forgotten\n"); forget(h) }
    :: d_step { step(h, END_TICKET) -> say("%c: release: gives the ticket back\n");
        if :: me.space == MEMBER -> give_back(ticket, h); go(h, END_LEASE) :: else -> idle(h) fi }
    :: d_step { step(h, END_LEASE) -> say("%c: release: gives the lease back, forgets\n");
        if :: me.space == MEMBER -> give_back(lease, h); forget(h) :: else fi;
        idle(h) }

    /* ================================================================================================= join === */
    :: d_step { calm(h) && must_join(h) && !holds_up_join(h) -> say("%c: join begins: freezes QEMU\n");
#ifndef BROKEN_JOIN_NO_FREEZE
        if :: me.qemu != NO_QEMU && me.record != INTENT -> me.frozen = 1 :: else fi;
#endif
        if :: me.space == MEMBER -> retake(h) :: else -> go(h, JOIN) fi }
    :: d_step { step(h, JOIN) -> say("%c: joins: all its leases are void\n");
        give_back(lease, h); give_back(ticket, h);                  /* void, for everybody, from now on */
        me.space = MEMBER; me.watched = 0; me.old = (me.record != NO_RECORD);
#ifdef BROKEN_JOIN_NO_FREEZE
        if :: me.qemu != NO_QEMU && me.record != INTENT -> retake(h) :: else -> idle(h) fi }
#else
        if :: me.frozen -> retake(h) :: else -> idle(h) fi }
#endif
    :: d_step { step(h, JOIN_TICKET) -> say("%c: join: acquires the ticket again\n");
        if
        :: me.qemu == NO_QEMU || me.space != MEMBER -> idle(h)
        :: me.qemu != NO_QEMU && me.space == MEMBER ->
            if :: me.has_ticket && ticket.owner == NOBODY -> acquire_ticket(h) :: else fi;
            if
            :: me.has_ticket && (ticket.owner != h || me.ticket_grew != 1) -> end_qemu(h); idle(h)
            :: else -> go(h, JOIN_LEASE)
            fi
        fi }
    :: d_step { step(h, JOIN_LEASE) -> say("%c: join: acquires the lease again\n");
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
            :: else -> me.watched = 1; go(h, JOIN_LET_GO)
            fi
        fi }
    :: d_step { step(h, JOIN_LET_GO) -> say("%c: join: lets QEMU go on\n");
        me.record = RUNNING; me.old = 0; me.orphans = 1; me.mine = 0; me.coming = 0;
        /* The versions recorded are those that the join acquired; of a lease that is the source's, the old one. */
        if :: me.has_ticket && me.ticket_grew > 0 -> me.ticket_grew-- :: else fi;
        if :: me.has_lease && me.lease_grew > 0 -> me.lease_grew-- :: else fi;
        if :: me.has_lease && lease.owner == h -> lease.note = me.guest :: else fi;
        if :: me.has_ticket && ticket.owner == h -> ticket.note = me.guest :: else fi;
        me.frozen = 0;
        if :: me.qemu == RUNS -> begins_to_write(h) :: else fi;
        idle(h) }

    /* ============================================================================================ migration === */
    :: d_step { !over && moving == COPIES && target == h && source != OUTSIDE && me.qemu == INCOMING && !me.due &&
                host[source].qemu == RUNS && !host[source].frozen -> say("%c: G stops at its source\n");
        host[source].qemu = PAUSED; moving = STOPPED }
    :: d_step { !over && target == h && me.qemu == INCOMING && !me.due && !me.frozen &&
                (moving == STOPPED || (moving == COPIES && source == OUTSIDE)) -> say("%c: G runs here now\n");
        me.qemu = RUNS; begins_to_write(h);
        moving = NONE; source = NOBODY; target = NOBODY }
    /* It fails: QEMU at the target ends first, then the source goes on. */
    :: d_step { !over && target == h && !(me.record == INTENT && me.at != IDLE) ->
        say("%c: the migration to here fails\n");
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
    :: d_step { calm(h) && !me.mark && in(COME_G, h) -> say("%c: an offline migration leaves its mark\n"); me.mark = 1 }
#endif

    /* =============================================================================================== faults === */
    :: d_step { !over && faults > 0 && me.at != IDLE ->
        say("%c: FAULT: the hook (join, handover) dies\n");             /* the hook, join or handover dies */
        faults--;
        idle(h) }
    :: d_step { !over && faults > 0 && me.due -> say("%c: FAULT: the started hook dies\n"); faults--; me.due = 0 }
    :: d_step { !over && faults > 0 && me.libvirtd ->
        say("%c: FAULT: libvirtd dies\n"); faults--; me.libvirtd = 0; me.mine = 0; me.yes = 0; me.due = 0 }
    :: d_step { !over && me.up && !me.libvirtd -> say("%c: libvirtd is back\n"); me.libvirtd = 1 }
    :: d_step { !over && faults > 0 && me.up -> say("%c: FAULT: power cut\n"); faults--; power_off(h) }
    :: d_step { !over && !me.up -> say("%c: boots\n"); me.up = 1; me.libvirtd = 1 }
    :: d_step { !over && faults > 0 && me.space == MEMBER ->
        say("%c: FAULT: sanlock's daemon dies\n"); faults--; me.space = DOWN; me.registered = 0 }
    :: d_step { !over && me.space == DOWN ->
        say("%c: the watchdog resets the host\n"); power_off(h) }         /* the watchdog */
    :: d_step { !over && faults > 0 && me.space == MEMBER ->
        say("%c: FAULT: the store is away\n"); faults--; me.space = LOSING }
    :: d_step { !over && me.space == LOSING ->
        say("%c: sanlock ends QEMU or gives up\n");
                             /* sanlock ends who has leases, then gives up */
        if
        :: me.qemu != NO_QEMU && ((lease.owner == h && lease.qemus) || (ticket.owner == h && ticket.qemus)) ->
            end_qemu(h)
        :: else -> if :: is_watched(h) -> power_off(h) :: else -> me.space = OUT fi
        fi }
    /* sanlock on the other hosts: this one is dead now. Never while a start is under way: that takes less time. */
    :: d_step { !over && can_expire(h) && (!me.up || (me.at == IDLE && !me.yes && !me.due)) &&
                (lease.owner == h || ticket.owner == h) ->
        say("%c: is dead for the others: its leases are free\n");
        give_back(lease, h); give_back(ticket, h) }
    od
}
#undef h
#undef me

/* The end game, possible at any moment: all guests are gone for good, every hook that was at work has died, nobody
 * fails any more. Hosts that are down stay down. The others do what their next hook call or join does. */
inline last_act(h) {
    end_qemu(h); host[h].at = IDLE; host[h].yes = 0;
    if
    :: !host[h].up || host[h].space == LOSING || host[h].space == OUT || host[h].space == DOWN ->
        give_back(lease, h); give_back(ticket, h); forget(h)        /* by death or by its rejoin */
    :: else ->
#ifndef BROKEN_NO_SWEEP
        if
#ifdef ASBUILT_FORGETS_OLD
        :: host[h].record == NO_RECORD || host[h].old -> skip
#else
        :: host[h].record == NO_RECORD -> skip
#endif
        :: else ->
            if
            :: host[h].has_ticket || (host[h].record == INTENT && host[h].coming) -> give_back(ticket, h)
            :: else
            fi;
            give_back(lease, h)
        fi;
#endif
        forget(h)
    fi
}

#define ok() (!two_write(0, 1) && !two_write(0, 2) && !two_write(1, 2) && !bare(0) && !bare(1) && !bare(2))
active proctype Judge() {
end:do
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
