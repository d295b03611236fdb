export { test } from "./fixtures.ts";
export { type NatsFixture, spawnNatsServer, startNats } from "./nats-server.ts";
export { type S3Fixture, spawnS3Server, startS3 } from "./s3-server.ts";
export { type ServerProcess } from "./server-process.ts";
