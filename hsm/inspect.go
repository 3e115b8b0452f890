package hsm

import (
	"context"
	"fmt"
	"path/filepath"

	"github.com/miekg/pkcs11"
)

// ModuleInfo is what a PKCS#11 library tells without a login.
type ModuleInfo struct {
	Path                            string
	Manufacturer, Library           string
	LibraryVersion, CryptokiVersion string
	Slots                           []SlotInfo
}

// SlotInfo is one slot that has a token in it.
type SlotInfo struct {
	Slot        uint // changes from one start to the next: for display only
	Description string
	Err         string // why the token could not be read; the fields below are empty then

	Initialized                                  bool
	Label, Serial, Manufacturer, Model, Firmware string
	LoginRequired, WriteProtected, HasRNG        bool
	PIN                                          PINFlags
	MaxSessions, MaxRWSessions                   int // 0: no limit, or not told
}

// InspectModule loads a module and lists its slots and tokens. It logs in nowhere and changes nothing.
func InspectModule(ctx context.Context, path string) (ModuleInfo, error) {
	if !filepath.IsAbs(path) {
		return ModuleInfo{}, fmt.Errorf("hsm: module %q: give the absolute path of the library", path)
	}
	return visiting(ctx, path, inspect)
}

func inspect(m *module) (ModuleInfo, error) {
	info := ModuleInfo{Path: m.path}
	lib, err := m.p.GetInfo()
	if err != nil {
		return info, callError("C_GetInfo", err)
	}
	info.Manufacturer, info.Library = trimPadding(lib.ManufacturerID), trimPadding(lib.LibraryDescription)
	info.LibraryVersion, info.CryptokiVersion = versionText(lib.LibraryVersion), versionText(lib.CryptokiVersion)
	slots, err := m.p.GetSlotList(true)
	if err != nil {
		return info, callError("C_GetSlotList", err)
	}
	for _, slot := range slots {
		info.Slots = append(info.Slots, inspectSlot(m.p, slot))
	}
	return info, nil
}

func inspectSlot(p *pkcs11.Ctx, slot uint) SlotInfo {
	s := SlotInfo{Slot: slot}
	if si, err := p.GetSlotInfo(slot); err == nil {
		s.Description = trimPadding(si.SlotDescription)
	}
	ti, err := p.GetTokenInfo(slot)
	if err != nil {
		s.Err = callError("C_GetTokenInfo", err).Error()
		return s
	}
	s.Initialized = ti.Flags&pkcs11.CKF_TOKEN_INITIALIZED != 0
	s.Label, s.Serial = trimPadding(ti.Label), trimPadding(ti.SerialNumber)
	s.Manufacturer, s.Model, s.Firmware = trimPadding(ti.ManufacturerID), trimPadding(ti.Model), versionText(ti.FirmwareVersion)
	s.LoginRequired = ti.Flags&pkcs11.CKF_LOGIN_REQUIRED != 0
	s.WriteProtected = ti.Flags&pkcs11.CKF_WRITE_PROTECTED != 0
	s.HasRNG = ti.Flags&pkcs11.CKF_RNG != 0
	s.PIN = pinFlags(ti.Flags)
	if n := sessionLimit(ti); n != unlimited {
		s.MaxSessions = n
	}
	if n := ti.MaxRwSessionCount; n < unlimited {
		s.MaxRWSessions = int(n)
	}
	return s
}
