/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Storage that stands still for one host alone. The hosts of the rig share one kernel, so a frozen filesystem is frozen for all
 * of them. Preloaded into a host's sanlock, this holds back what it reads and writes (libaio) while the file is there: to the
 * daemon it looks like a path to the storage that has gone.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <unistd.h>

typedef int submit(void *context, long count, void **blocks);

int io_submit(void *context, long count, void **blocks)
{
	static submit *real;

	if (!real)
		real = (submit *)dlsym(RTLD_NEXT, "io_submit");
	while (access("/run/storage-is-frozen", F_OK) == 0)
		usleep(10000);
	return real(context, count, blocks);
}
