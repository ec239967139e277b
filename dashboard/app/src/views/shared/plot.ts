// uPlot, loaded when the first chart is shown. Its style sheet is a file of its own, as the page's policy wants it.
import uPlot from "uplot";
import "uplot/dist/uPlot.min.css";

export default uPlot;
