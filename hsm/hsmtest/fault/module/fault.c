// A PKCS#11 library that passes every call on to a real one, and misbehaves on request. Beside the library lie two files, found by its own path:
// <path>.real names the real library, <path>.ctl is the memory shared with the test (struct control below; fault.go knows its layout).
//
// For 64-bit unix, where every parameter of a PKCS#11 function is passed like an unsigned long.

#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

typedef unsigned long ul;
typedef struct { unsigned char major, minor; void *fn[68]; } functions;

enum { functionCount = 68, maxSessions = 4096 };
enum { modeNone, modeFail, modeFailAfter, modeHang, modeSlow };

struct fault {
	_Atomic int64_t mode;
	_Atomic int64_t rv;      // what modeFail and modeFailAfter return
	_Atomic int64_t skip;    // calls that pass before the fault begins
	_Atomic int64_t times;   // calls that it then lasts; negative: until cleared
	_Atomic int64_t slot;    // calls on sessions of this slot only; negative: all
	_Atomic int64_t delay;   // of modeSlow, in ns
	_Atomic int64_t calls;   // how often the function was called
	_Atomic int64_t hanging; // how many calls hang now
};

struct control {
	struct fault faults[functionCount];
	_Atomic int64_t reportMax;  // CK_TOKEN_INFO.ulMaxSessionCount; 0: as the real one says
	_Atomic int64_t enforceMax; // CKR_SESSION_COUNT beyond; 0: none
	_Atomic int64_t setFlags, clearFlags; // of CK_TOKEN_INFO
	_Atomic int64_t open;       // sessions
	_Atomic int64_t inside;     // calls in the real library or hanging
	_Atomic int64_t shared;     // calls on a session that another thread was in
	_Atomic int64_t finalizedInside; // C_Finalize while another call was inside
	_Atomic int64_t rwCrypto;   // cryptographic calls on a RW session
	_Atomic int64_t openRW;     // RW sessions
};

static functions *real;
static functions wrapped;
static struct control *ctl;

static struct session { ul handle, slot, flags; int used, busy; } sessions[maxSessions];
static pthread_mutex_t sessionsLock = PTHREAD_MUTEX_INITIALIZER;

static struct session *lookup(ul handle) {
	for (int i = 0; i < maxSessions; i++)
		if (sessions[i].used && sessions[i].handle == handle) return &sessions[i];
	return NULL;
}

static void nap(int64_t ns) {
	struct timespec t = { ns / 1000000000, ns % 1000000000 };
	nanosleep(&t, NULL);
}

// begin counts a call and tells whether it is to end with *rv at once.
static int begin(int fn, int64_t slot, ul *rv) {
	struct fault *f = &ctl->faults[fn];
	atomic_fetch_add(&f->calls, 1);
	int64_t mode = atomic_load(&f->mode), only = atomic_load(&f->slot);
	if (mode == modeNone || mode == modeFailAfter || (only >= 0 && slot != only)) return 0;
	if (atomic_load(&f->skip) > 0 && atomic_fetch_sub(&f->skip, 1) > 0) return 0;
	if (atomic_load(&f->times) >= 0 && atomic_fetch_sub(&f->times, 1) <= 0) { atomic_store(&f->times, 0); return 0; }
	switch (mode) {
	case modeFail:
		*rv = (ul)atomic_load(&f->rv);
		return 1;
	case modeHang:
		atomic_fetch_add(&f->hanging, 1);
		while (atomic_load(&f->mode) == modeHang) nap(1000000);
		atomic_fetch_sub(&f->hanging, 1);
		return 0;
	case modeSlow:
		nap(atomic_load(&f->delay));
	}
	return 0;
}

// end lets a call that did its work report failure.
static ul end(int fn, int64_t slot, ul rv) {
	struct fault *f = &ctl->faults[fn];
	int64_t only = atomic_load(&f->slot);
	if (atomic_load(&f->mode) != modeFailAfter || (only >= 0 && slot != only)) return rv;
	if (atomic_load(&f->skip) > 0 && atomic_fetch_sub(&f->skip, 1) > 0) return rv;
	if (atomic_load(&f->times) >= 0 && atomic_fetch_sub(&f->times, 1) <= 0) { atomic_store(&f->times, 0); return rv; }
	return (ul)atomic_load(&f->rv);
}

static int cryptographic(int fn) { return fn >= 29 && fn <= 57; } // C_EncryptInit to C_VerifyRecover

typedef ul (*call)(ul, ul, ul, ul, ul, ul, ul, ul);

static ul onSession(int fn, ul a, ul b, ul c, ul d, ul e, ul f, ul g, ul h) {
	int64_t slot = -1;
	pthread_mutex_lock(&sessionsLock);
	struct session *s = lookup(a);
	if (s != NULL) {
		slot = (int64_t)s->slot;
		if (s->busy++ > 0) atomic_fetch_add(&ctl->shared, 1);
		if (cryptographic(fn) && (s->flags & 2)) atomic_fetch_add(&ctl->rwCrypto, 1);
	}
	pthread_mutex_unlock(&sessionsLock);
	atomic_fetch_add(&ctl->inside, 1);
	ul rv = 0;
	if (!begin(fn, slot, &rv)) {
		rv = ((call)real->fn[fn])(a, b, c, d, e, f, g, h);
		rv = end(fn, slot, rv);
	}
	atomic_fetch_sub(&ctl->inside, 1);
	pthread_mutex_lock(&sessionsLock);
	s = lookup(a);
	if (s != NULL) {
		s->busy--;
		if (fn == 13 && rv == 0) {
			s->used = 0;
			atomic_fetch_sub(&ctl->open, 1);
			if (s->flags & 2) atomic_fetch_sub(&ctl->openRW, 1);
		}
	}
	pthread_mutex_unlock(&sessionsLock);
	return rv;
}

static ul onSlot(int fn, ul a, ul b, ul c, ul d, ul e, ul f, ul g, ul h) {
	atomic_fetch_add(&ctl->inside, 1);
	ul rv = 0;
	int64_t slot = fn <= 4 ? -1 : (int64_t)a;
	if (!begin(fn, slot, &rv)) {
		rv = ((call)real->fn[fn])(a, b, c, d, e, f, g, h);
		rv = end(fn, slot, rv);
	}
	atomic_fetch_sub(&ctl->inside, 1);
	return rv;
}

#define SESSION(n) static ul w##n(ul a, ul b, ul c, ul d, ul e, ul f, ul g, ul h) { return onSession(n, a, b, c, d, e, f, g, h); }
#define SLOT(n) static ul w##n(ul a, ul b, ul c, ul d, ul e, ul f, ul g, ul h) { return onSlot(n, a, b, c, d, e, f, g, h); }

SLOT(0) SLOT(2) SLOT(4) SLOT(5) SLOT(7) SLOT(8) SLOT(9)
SESSION(10) SESSION(11) SESSION(13) SESSION(15) SESSION(18) SESSION(19)
SESSION(20) SESSION(21) SESSION(22) SESSION(23) SESSION(24) SESSION(25) SESSION(26) SESSION(27) SESSION(28) SESSION(29)
SESSION(30) SESSION(31) SESSION(32) SESSION(33) SESSION(34) SESSION(35) SESSION(36) SESSION(37) SESSION(38) SESSION(39)
SESSION(40) SESSION(41) SESSION(42) SESSION(43) SESSION(44) SESSION(45) SESSION(46) SESSION(47) SESSION(48) SESSION(49)
SESSION(50) SESSION(51) SESSION(58) SESSION(59) SESSION(60) SESSION(61) SESSION(62) SESSION(63) SESSION(64)

static ul finalize(ul reserved) {
	if (atomic_load(&ctl->inside) > 0) atomic_fetch_add(&ctl->finalizedInside, 1);
	ul rv = onSlot(1, reserved, 0, 0, 0, 0, 0, 0, 0);
	if (rv == 0) {
		pthread_mutex_lock(&sessionsLock);
		memset(sessions, 0, sizeof sessions);
		atomic_store(&ctl->open, 0);
		atomic_store(&ctl->openRW, 0);
		pthread_mutex_unlock(&sessionsLock);
	}
	return rv;
}

struct tokenInfo { unsigned char label[32], manufacturer[32], model[16], serial[16]; ul flags, maxSessions, sessions, maxRW, rw; };

static ul getTokenInfo(ul slot, struct tokenInfo *info) {
	ul rv = onSlot(6, slot, (ul)info, 0, 0, 0, 0, 0, 0);
	if (rv == 0) {
		info->flags = (info->flags | (ul)atomic_load(&ctl->setFlags)) & ~(ul)atomic_load(&ctl->clearFlags);
		if (atomic_load(&ctl->reportMax) != 0) info->maxSessions = (ul)atomic_load(&ctl->reportMax);
	}
	return rv;
}

static ul openSession(ul slot, ul flags, ul app, ul notify, ul *handle) {
	int64_t most = atomic_load(&ctl->enforceMax);
	if (atomic_fetch_add(&ctl->open, 1) >= most && most > 0) {
		atomic_fetch_sub(&ctl->open, 1);
		atomic_fetch_add(&ctl->faults[12].calls, 1);
		return 0xB1; // CKR_SESSION_COUNT
	}
	ul rv = onSlot(12, slot, flags, app, notify, (ul)handle, 0, 0, 0);
	if (rv != 0) {
		atomic_fetch_sub(&ctl->open, 1);
		return rv;
	}
	if (flags & 2) atomic_fetch_add(&ctl->openRW, 1);
	pthread_mutex_lock(&sessionsLock);
	for (int i = 0; i < maxSessions; i++) {
		if (sessions[i].used) continue;
		sessions[i] = (struct session){ *handle, slot, flags, 1, 0 };
		break;
	}
	pthread_mutex_unlock(&sessionsLock);
	return rv;
}

static int attach(void) {
	Dl_info self;
	char path[4096], target[4096];
	if (dladdr((void *)attach, &self) == 0) return 0;
	snprintf(path, sizeof path, "%s.real", self.dli_fname);
	FILE *f = fopen(path, "r");
	if (f == NULL) return 0;
	size_t n = fread(target, 1, sizeof target - 1, f);
	fclose(f);
	target[n] = 0;
	snprintf(path, sizeof path, "%s.ctl", self.dli_fname);
	int fd = open(path, O_RDWR);
	if (fd < 0) return 0;
	ctl = mmap(NULL, sizeof *ctl, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	close(fd);
	if (ctl == MAP_FAILED) return 0;
	void *lib = dlopen(target, RTLD_NOW | RTLD_LOCAL);
	if (lib == NULL) return 0;
	ul (*get)(functions **) = (ul (*)(functions **))dlsym(lib, "C_GetFunctionList");
	return get != NULL && get(&real) == 0;
}

ul C_GetFunctionList(functions **list) {
	static pthread_mutex_t once = PTHREAD_MUTEX_INITIALIZER;
	pthread_mutex_lock(&once);
	int ok = real != NULL || attach();
	if (ok) {
		wrapped = *real;
#define SET(n) wrapped.fn[n] = (void *)w##n;
		SET(0) SET(2) SET(4) SET(5) SET(7) SET(8) SET(9) SET(10) SET(11) SET(13) SET(15) SET(18) SET(19)
		SET(20) SET(21) SET(22) SET(23) SET(24) SET(25) SET(26) SET(27) SET(28) SET(29)
		SET(30) SET(31) SET(32) SET(33) SET(34) SET(35) SET(36) SET(37) SET(38) SET(39)
		SET(40) SET(41) SET(42) SET(43) SET(44) SET(45) SET(46) SET(47) SET(48) SET(49)
		SET(50) SET(51) SET(58) SET(59) SET(60) SET(61) SET(62) SET(63) SET(64)
		wrapped.fn[1] = (void *)finalize;
		wrapped.fn[3] = (void *)C_GetFunctionList;
		wrapped.fn[6] = (void *)getTokenInfo;
		wrapped.fn[12] = (void *)openSession;
		*list = &wrapped;
	}
	pthread_mutex_unlock(&once);
	return ok ? 0 : 5; // CKR_GENERAL_ERROR
}
