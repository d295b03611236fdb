export { courierCommand, createProcessLauncher, type ProcessLauncherOptions } from "./launchers/process-launcher.ts";
export type { Attempt, AttemptPhase, Launcher, TrainJob } from "./launchers/launcher.ts";
export { createTrainService, type TrainServiceDeps } from "./controller/service.ts";
