export { courierCommand, createProcessLauncher, type ProcessLauncherOptions } from "./launchers/process-launcher.ts";
export type { AttemptRequest, AttemptSpec } from "./attempt/attempt-spec.ts";
export type { Attempt, AttemptPhase, Launcher } from "./launchers/launcher.ts";
export { createTrainService, type TrainServiceDeps } from "./controller/service.ts";
