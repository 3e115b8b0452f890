module github.com/keyhold/keyhold/interop

go 1.26.4

require (
	github.com/aws/aws-sdk-go-v2 v1.48.0
	github.com/keyhold/keyhold v0.0.0
)

require github.com/aws/smithy-go v1.28.9 // indirect

replace github.com/keyhold/keyhold => ../
