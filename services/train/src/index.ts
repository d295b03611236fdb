export { courierCommand, createProcessLauncher } from "./launchers/process-launcher.ts";
export { createTrainService } from "./controller/service.ts";
export { createWarmTrainers, warmEnv } from "./trainer-host/warm-trainers.ts";
