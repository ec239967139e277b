import { render } from "preact";
import { App } from "./app";
import { startHead } from "./head";
import { startRouter } from "./router";
import { start, startClock } from "./store";
import { startTheme } from "./theme";

startTheme();
startRouter();
startHead();
startClock();
render(<App />, document.getElementById("app")!);
void start();
