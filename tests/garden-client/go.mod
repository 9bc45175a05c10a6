module wardian.test/garden-client

go 1.24
