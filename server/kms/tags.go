package kms

import (
	"cmp"
	"context"
	"slices"
	"strings"
	"unicode"

	keyholdv1 "github.com/keyhold/keyhold/proto/keyhold/v1"
)

// maxTagsPerKey is AWS's limit.
const maxTagsPerKey = 50

func validTagResource(r *keyholdv1.TagResourceRequest) error { return checkTags(r.GetTags()) }

// tagResource adds tags, and changes the values of those that are there.
func (s *Service) tagResource(ctx context.Context, c *call, r *keyholdv1.TagResourceRequest) (*keyholdv1.TagResourceResponse, error) {
	_, err := s.mutate(ctx, c, c.key(0).entry, func(rec *KeyRecord) error {
		for _, t := range r.GetTags() {
			if i := slices.IndexFunc(rec.Tags, func(have Tag) bool { return have.Key == t.GetTagKey() }); i >= 0 {
				rec.Tags[i].Value = t.GetTagValue()
			} else {
				rec.Tags = append(rec.Tags, Tag{Key: t.GetTagKey(), Value: t.GetTagValue()})
			}
		}
		if len(rec.Tags) > maxTagsPerKey {
			return errorf(CodeLimitExceeded, "A key may have at most %d tags; it would have %d.", maxTagsPerKey, len(rec.Tags))
		}
		return nil
	})
	return &keyholdv1.TagResourceResponse{}, err
}

func validUntagResource(r *keyholdv1.UntagResourceRequest) error {
	for _, key := range r.GetTagKeys() {
		if err := checkTagText(key, ""); err != nil {
			return err
		}
	}
	return nil
}

// untagResource removes tags. Those that are not there are none to remove, as
// in AWS.
func (s *Service) untagResource(ctx context.Context, c *call, r *keyholdv1.UntagResourceRequest) (*keyholdv1.UntagResourceResponse, error) {
	_, err := s.mutate(ctx, c, c.key(0).entry, func(rec *KeyRecord) error {
		rec.Tags = slices.DeleteFunc(rec.Tags, func(t Tag) bool { return slices.Contains(r.GetTagKeys(), t.Key) })
		return nil
	})
	return &keyholdv1.UntagResourceResponse{}, err
}

// listResourceTags lists tags in the order of their keys.
func (s *Service) listResourceTags(_ context.Context, c *call, r *keyholdv1.ListResourceTagsRequest) (*keyholdv1.ListResourceTagsResponse, error) {
	after, err := parseMarker(r.Marker, tagsMarker)
	if err != nil {
		return nil, err
	}
	limit := maxTagsPerKey
	if r.Limit != nil {
		limit = int(r.GetLimit())
	}
	tags := slices.DeleteFunc(slices.Clone(c.key(0).rec.Tags), func(t Tag) bool { return after != "" && t.Key <= after })
	slices.SortFunc(tags, func(a, b Tag) int { return cmp.Compare(a.Key, b.Key) })
	more := len(tags) > limit
	tags = tags[:min(len(tags), limit)]
	resp := &keyholdv1.ListResourceTagsResponse{Truncated: &more}
	for _, t := range tags {
		resp.Tags = append(resp.Tags, &keyholdv1.Tag{TagKey: t.Key, TagValue: &t.Value})
	}
	if more {
		resp.NextMarker = formatMarker(tagsMarker, tags[len(tags)-1].Key)
	}
	return resp, nil
}

// checkTags refuses what AWS refuses: doubles, reserved names, characters
// that its tag editor does not know.
func checkTags(tags []*keyholdv1.Tag) error {
	seen := make(map[string]bool, len(tags))
	for _, t := range tags {
		key := t.GetTagKey()
		if seen[key] {
			return errorf(CodeTag, "Duplicate tag keys are not allowed: %s", clip(key))
		}
		if err := checkTagText(key, t.GetTagValue()); err != nil {
			return err
		}
		seen[key] = true
	}
	return nil
}

func checkTagText(key, value string) error {
	switch {
	case len(key) >= 4 && strings.EqualFold(key[:4], "aws:"):
		return errorf(CodeTag, "Tag keys that begin with aws: are reserved: %s", clip(key))
	case !tagText(key), !tagText(value):
		return errorf(CodeTag, "Tag %s holds a character other than letters, digits, spaces and _ . : / = + - @", clip(key))
	}
	return nil
}

func tagText(s string) bool {
	return strings.IndexFunc(s, func(r rune) bool {
		return !unicode.IsLetter(r) && !unicode.IsDigit(r) && !unicode.IsSpace(r) && !strings.ContainsRune("_.:/=+-@", r)
	}) < 0
}
