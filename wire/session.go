package wire

// PathSession is where people sign in with a token, and out again.
const PathSession = BasePath + "/session"

// Session is who asks.
type Session struct {
	Whoami *Whoami `json:"whoami,omitempty" doc:"Absent: nobody who is known; a token is needed."`
}

// SessionRequest signs in.
type SessionRequest struct {
	Token string `json:"token" minLength:"1" maxLength:"4096" doc:"The token that a program would send as a bearer."`
}
