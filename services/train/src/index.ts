export { courierCommand, createProcessLauncher, type ProcessLauncherOptions } from "./process-launcher.ts";
export type { Attempt, AttemptPhase, Launcher, TrainJob } from "./launcher.ts";
export { createTrainService, type TrainServiceDeps } from "./service.ts";
