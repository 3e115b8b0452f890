package goclients_test

import (
	"testing"

	"gocloud.dev/gcerrors"
	"gocloud.dev/secrets"
	_ "gocloud.dev/secrets/awskms"
)

func TestGoCloud(t *testing.T) {
	ctx := t.Context()
	keeper, err := secrets.OpenKeeper(ctx, "awskms:///alias/app?context_purpose=war")
	if err != nil {
		t.Fatal(err)
	}
	defer keeper.Close()
	sealed, err := keeper.Encrypt(ctx, []byte("attack at dawn"))
	if err != nil {
		t.Fatal(err)
	}

	opened, err := keeper.Decrypt(ctx, sealed)
	if err != nil || string(opened) != "attack at dawn" {
		t.Errorf("%q %v", opened, err)
	}
	other, err := secrets.OpenKeeper(ctx, "awskms:///alias/app?context_purpose=peace")
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if _, err := other.Decrypt(ctx, sealed); gcerrors.Code(err) != gcerrors.InvalidArgument {
		t.Errorf("another context: %v is %v", err, gcerrors.Code(err))
	}
	missing, err := secrets.OpenKeeper(ctx, "awskms:///alias/no-such-key")
	if err != nil {
		t.Fatal(err)
	}
	defer missing.Close()
	if _, err := missing.Encrypt(ctx, []byte("x")); gcerrors.Code(err) != gcerrors.NotFound {
		t.Errorf("no key: %v is %v", err, gcerrors.Code(err))
	}
}
