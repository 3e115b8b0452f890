// A PKCS#11 library that passes every call on to a real one, and misbehaves on request. Beside the library lie two files, found by its own path:
// <path>.real names the real library, <path>.ctl is the memory shared with the test (struct control below; fault.go knows its layout).
//
// For 64-bit unix, where every parameter of a PKCS#11 function is passed like an unsigned long.

#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
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
enum { modeNone, modeFail, modeFailAfter, modeHang, modeSlow, modeLength, modeKill, modeKillAfter };
enum { lengthLong = 1, lengthShort, lengthZero };
enum { actLose = 1, actForget = 2 };

struct fault {
	_Atomic int64_t mode;
	_Atomic int64_t rv;      // what modeFail and modeFailAfter return; of modeLength, which length
	_Atomic int64_t skip;    // calls that pass before the fault begins
	_Atomic int64_t times;   // calls that it then lasts; negative: until cleared
	_Atomic int64_t slot;    // calls on sessions of this slot only; negative: all
	_Atomic int64_t delay;   // of modeSlow, in ns
	_Atomic int64_t calls;   // how often the function was called
	_Atomic int64_t hanging; // how many calls hang now
	_Atomic int64_t out, outLen; // the buffer for the output of the call that hung last
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
	_Atomic int64_t act;        // what the next call does behind its caller's back before anything else: actLose, actForget
	_Atomic int64_t removed;    // there is no token in any slot
};

static functions *real;
static functions wrapped;
static struct control *ctl;

static struct session { ul handle, slot, flags; int used, busy; } sessions[maxSessions];
static pthread_mutex_t sessionsLock = PTHREAD_MUTEX_INITIALIZER;

// Held for reading while a call is in the real library, for writing while something is done there that no call may meet: SoftHSM does not survive
// the end of a session that another thread is in. A call that hangs on request hangs before it takes this.
#ifdef PTHREAD_RWLOCK_WRITER_NONRECURSIVE_INITIALIZER_NP
static pthread_rwlock_t realLock = PTHREAD_RWLOCK_WRITER_NONRECURSIVE_INITIALIZER_NP; // glibc's default lets readers starve the writer
#else
static pthread_rwlock_t realLock = PTHREAD_RWLOCK_INITIALIZER;
#endif

static struct session *lookup(ul handle) {
	for (int i = 0; i < maxSessions; i++)
		if (sessions[i].used && sessions[i].handle == handle) return &sessions[i];
	return NULL;
}

static void nap(int64_t ns) {
	struct timespec t = { ns / 1000000000, ns % 1000000000 };
	nanosleep(&t, NULL);
}

// armed tells whether a call on the slot is one that the fault is for, and counts it.
static int armed(struct fault *f, int64_t slot) {
	int64_t only = atomic_load(&f->slot);
	if (only >= 0 && slot != only) return 0;
	if (atomic_load(&f->skip) > 0 && atomic_fetch_sub(&f->skip, 1) > 0) return 0;
	if (atomic_load(&f->times) >= 0 && atomic_fetch_sub(&f->times, 1) <= 0) { atomic_store(&f->times, 0); return 0; }
	return 1;
}

// The places of *pulLen and its like.
struct attribute { ul type; void *value; ul len; };

// keepOutput notes where a call that begins is to put what comes out of it.
static void keepOutput(int fn, struct fault *f, ul b, ul c, ul d, ul e) {
	ul out = 0, len = 0;
	switch (fn) {
	case 24: out = (ul)((struct attribute *)c)->value, len = ((struct attribute *)c)->len; break; // C_GetAttributeValue: of the first
	case 30: case 34: case 43: out = d, len = *(ul *)e; break;                                     // C_Encrypt, C_Decrypt, C_Sign
	case 64: out = b, len = c;                                                                     // C_GenerateRandom
	}
	atomic_store(&f->out, (int64_t)out);
	atomic_store(&f->outLen, (int64_t)len);
}

// begin counts a call and tells whether it is to end with *rv at once.
static int begin(int fn, int64_t slot, ul *rv, ul b, ul c, ul d, ul e) {
	struct fault *f = &ctl->faults[fn];
	atomic_fetch_add(&f->calls, 1);
	int64_t mode = atomic_load(&f->mode);
	if (mode == modeNone || mode == modeFailAfter || mode == modeLength || mode == modeKillAfter || !armed(f, slot)) return 0;
	switch (mode) {
	case modeFail:
		*rv = (ul)atomic_load(&f->rv);
		return 1;
	case modeKill:
		kill(getpid(), SIGKILL);
		pause();
		break;
	case modeHang:
		keepOutput(fn, f, b, c, d, e);
		atomic_fetch_add(&f->hanging, 1);
		while (atomic_load(&f->mode) == modeHang) nap(1000000);
		atomic_fetch_sub(&f->hanging, 1);
		return 0;
	case modeSlow:
		nap(atomic_load(&f->delay));
	}
	return 0;
}

static void spoil(ul *n, int64_t how) {
	switch (how) {
	case lengthLong: ++*n; break;
	case lengthShort: if (*n > 0) --*n; break;
	case lengthZero: *n = 0;
	}
}

// misjudge makes a call that went well tell wrong lengths.
static void misjudge(int fn, int64_t how, ul b, ul c, ul d, ul e, ul f) {
	(void)b;
	switch (fn) {
	case 4: case 7: spoil((ul *)c, how); break;                    // C_GetSlotList, C_GetMechanismList
	case 24:                                                       // C_GetAttributeValue
		for (ul i = 0; i < d; i++) {
			struct attribute *a = (struct attribute *)c + i;
			if (a->len != ~0UL) spoil(&a->len, how); // ~0: there is no such attribute
		}
		break;
	case 27: spoil((ul *)d, how); break;                           // C_FindObjects
	case 30: case 34: case 43: spoil((ul *)e, how); break;         // C_Encrypt, C_Decrypt, C_Sign
	case 60: spoil((ul *)f, how); break;                           // C_WrapKey
	}
}

// end does what shall happen after a call that did its work.
static ul end(int fn, int64_t slot, ul rv, ul b, ul c, ul d, ul e, ul g) {
	struct fault *f = &ctl->faults[fn];
	int64_t mode = atomic_load(&f->mode);
	if (mode != modeFailAfter && mode != modeLength && mode != modeKillAfter) return rv;
	if ((mode == modeLength && rv != 0) || !armed(f, slot)) return rv;
	switch (mode) {
	case modeLength:
		misjudge(fn, atomic_load(&f->rv), b, c, d, e, g);
		return rv;
	case modeKillAfter:
		kill(getpid(), SIGKILL);
		pause();
	}
	return (ul)atomic_load(&f->rv);
}

static void dropped(struct session *s) {
	s->used = 0;
	atomic_fetch_sub(&ctl->open, 1);
	if (s->flags & 2) atomic_fetch_sub(&ctl->openRW, 1);
}

// behindBack ends logins and sessions of every slot that has sessions, for real, as another program with the same token or the token itself might.
static void behindBack(void) {
	if (atomic_load(&ctl->act) == 0) return;
	pthread_rwlock_wrlock(&realLock);
	int64_t act = atomic_exchange(&ctl->act, 0);
	pthread_mutex_lock(&sessionsLock);
	for (int i = 0; i < maxSessions; i++) {
		struct session *s = &sessions[i];
		if (!s->used || !act) continue;
		if (act & actForget) ((ul (*)(ul))real->fn[19])(s->handle);
		if (!(act & actLose)) continue;
		ul slot = s->slot;
		((ul (*)(ul))real->fn[14])(slot); // C_CloseAllSessions
		for (int j = i; j < maxSessions; j++)
			if (sessions[j].used && sessions[j].slot == slot) dropped(&sessions[j]);
	}
	pthread_mutex_unlock(&sessionsLock);
	pthread_rwlock_unlock(&realLock);
}

static int cryptographic(int fn) { return fn >= 29 && fn <= 57; } // C_EncryptInit to C_VerifyRecover

typedef ul (*call)(ul, ul, ul, ul, ul, ul, ul, ul);

static ul onSession(int fn, ul a, ul b, ul c, ul d, ul e, ul f, ul g, ul h) {
	int64_t slot = -1;
	behindBack();
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
	if (atomic_load(&ctl->removed)) {
		rv = 0x32; // CKR_DEVICE_REMOVED
	} else if (!begin(fn, slot, &rv, b, c, d, e)) {
		pthread_rwlock_rdlock(&realLock);
		rv = ((call)real->fn[fn])(a, b, c, d, e, f, g, h);
		pthread_rwlock_unlock(&realLock);
		rv = end(fn, slot, rv, b, c, d, e, f);
	}
	atomic_fetch_sub(&ctl->inside, 1);
	pthread_mutex_lock(&sessionsLock);
	s = lookup(a);
	if (s != NULL) {
		s->busy--;
		if (fn == 13 && rv == 0) dropped(s);
	}
	pthread_mutex_unlock(&sessionsLock);
	return rv;
}

static ul onSlot(int fn, ul a, ul b, ul c, ul d, ul e, ul f, ul g, ul h) {
	behindBack();
	atomic_fetch_add(&ctl->inside, 1);
	ul rv = 0;
	int64_t slot = fn <= 4 ? -1 : (int64_t)a;
	int removed = atomic_load(&ctl->removed) != 0;
	if (removed && fn >= 6) {
		rv = 0xE0; // CKR_TOKEN_NOT_PRESENT
	} else if (removed && fn == 4 && (a & 0xff)) {
		*(ul *)c = 0; // no slot with a token
	} else if (!begin(fn, slot, &rv, b, c, d, e)) {
		pthread_rwlock_rdlock(&realLock);
		rv = ((call)real->fn[fn])(a, b, c, d, e, f, g, h);
		pthread_rwlock_unlock(&realLock);
		rv = end(fn, slot, rv, b, c, d, e, f);
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

static ul closeAllSessions(ul slot) {
	ul rv = onSlot(14, slot, 0, 0, 0, 0, 0, 0, 0);
	if (rv == 0) {
		pthread_mutex_lock(&sessionsLock);
		for (int i = 0; i < maxSessions; i++)
			if (sessions[i].used && sessions[i].slot == slot) {
				if (sessions[i].busy > 0) atomic_fetch_add(&ctl->shared, 1); // its owner is in a call
				dropped(&sessions[i]);
			}
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
		wrapped.fn[14] = (void *)closeAllSessions;
		*list = &wrapped;
	}
	pthread_mutex_unlock(&once);
	return ok ? 0 : 5; // CKR_GENERAL_ERROR
}
