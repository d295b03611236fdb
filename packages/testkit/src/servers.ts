/** The servers and the simulated engine without vitest, for benchmarks and scripts. */
export { baseName, basesDir, smollm2Dir } from "./base-dir.ts";
export { type NatsCluster, spawnNatsCluster } from "./nats-cluster.ts";
export { spawnNatsServer, startNats } from "./nats-server.ts";
export { playHub } from "./play-hub.ts";
export { quantisedBase } from "./quantised-bases.ts";
export { type ProxyFixture, startProxy } from "./proxy.ts";
export { spawnS3Server, startS3 } from "./s3-server.ts";
export { freePort, type ServerProcess } from "./server-process.ts";
export * from "./simulated-engine.ts";
export { simulatedAdapter, type SimulatedAdapterOptions, simulatedAnswer, simulatedProbes, simulatedWeights } from "./simulated-model.ts";
